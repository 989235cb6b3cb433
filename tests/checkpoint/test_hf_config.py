import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitrain.checkpoint.hf_config import hf_config, read_hf_model_config, read_hf_tokenizer
from minitrain.config import ModelConfig
from minitrain.errors import CheckpointError

LLAMA = ModelConfig("llama", 3, 48, 6, 2, 80, 101, 40, True, 5e5, 1e-6)
GPT2 = ModelConfig("gpt2", 2, 32, 4, 4, 96, 77, 24, True, norm_eps=1e-6)

V4 = {  # as transformers 4 wrote them
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 176,
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 256,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "vocab_size": 50257,
    },
}


def write(directory: Path, values: object) -> Path:
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_round_trip(model: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, hf_config(model, np.dtype(np.float64), "bytes"))
    assert read_hf_model_config(tmp_path) == (model, [])
    assert read_hf_tokenizer(tmp_path) == "bytes"
    write(tmp_path, hf_config(model, np.dtype(np.float64), None))
    assert read_hf_tokenizer(tmp_path) is None


def test_transformers_4_llama(tmp_path: Path) -> None:
    model, notices = read_hf_model_config(write(tmp_path, V4["llama"]))
    assert model == ModelConfig("llama", 2, 64, 4, 2, 176, 256, 128, False, 1e5, 1e-5) and notices == []
    without = {k: v for k, v in V4["llama"].items() if k not in ("num_key_value_heads", "rope_theta")}
    model, _ = read_hf_model_config(write(tmp_path, without))
    assert model.kv_heads == 4 and model.rope_theta == 1e4


def test_transformers_4_gpt2(tmp_path: Path) -> None:
    model, notices = read_hf_model_config(write(tmp_path, V4["gpt2"]))
    assert model == ModelConfig("gpt2", 2, 64, 4, 4, 256, 50257, 1024, True)
    assert len(notices) == 2 and "resid_pdrop 0.1" in notices[0] and "attn_pdrop 0.1" in notices[1]
    read_hf_model_config(write(tmp_path, V4["gpt2"] | {"activation_function": "gelu_pytorch_tanh"}))


def test_transformers_5_rope(tmp_path: Path) -> None:
    values = {k: v for k, v in V4["llama"].items() if not k.startswith("rope")}
    values["rope_parameters"] = {"rope_theta": 2e4, "rope_type": "default"}
    assert read_hf_model_config(write(tmp_path, values))[0].rope_theta == 2e4


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling of type 'llama3'"),
    ("llama", {"rope_scaling": 2}, "rope_scaling 2"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters of type 'yarn'"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_theta": 0}, "rope_theta 0 "),
    ("llama", {"rope_theta": "1e4"}, "rope_theta '1e4'"),
    ("llama", {"attention_bias": True}, "attention_bias True"),
    ("llama", {"mlp_bias": True}, "mlp_bias True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("llama", {"sliding_window": 4096}, "sliding_window 4096"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"head_dim": 32}, "head_dim 32"),
    ("llama", {"num_attention_heads": 5}, "width 64 is no multiple of 5 heads"),
    ("llama", {"num_key_value_heads": 3}, "4 heads are no multiple of 3 key/value heads"),
    ("llama", {"hidden_size": 12}, "head width 3 is odd"),
    ("llama", {"hidden_size": None}, "hidden_size is not given"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
    ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers 2.0"),
    ("llama", {"vocab_size": "256"}, "vocab_size '256'"),
    ("llama", {"vocab_size": True}, "vocab_size True"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps -1e-05"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
    ("llama", {"model_type": "mistral"}, "model_type 'mistral'.*llama or gpt2"),
    ("llama", {"model_type": None}, "model_type None"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function 'gelu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention True"),
    ("gpt2", {"n_inner": -1}, "n_inner -1"),
]


@pytest.mark.parametrize(("arch", "change", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_refused_by_name(arch: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read_hf_model_config(write(tmp_path, V4[arch] | change))
    assert error.value.exit_code == 4 and str(error.value).count("; ") == 2
    assert "config.json" in error.value.problems[0].where


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_type": ' + "[" * 10**5, "\xff\xfe"])
def test_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_hf_model_config(tmp_path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the directory is not there"):
        read_hf_model_config(tmp_path / "no")
    with pytest.raises(CheckpointError, match=r"the directory has no config\.json"):
        read_hf_model_config(tmp_path)
