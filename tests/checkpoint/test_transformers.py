"""Against the library itself: what it writes we read, what we write it reads, and the model is the same."""

from pathlib import Path
from typing import Any

import pytest

from minitrain.checkpoint.hf_config import read_hf_model_config
from minitrain.checkpoint.huggingface import convert

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `parity`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")


def model_of(case: str, dtype: Any) -> Any:
    torch.manual_seed(0)
    if case == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_inner=80, n_positions=24
        )
        config.bos_token_id = config.eos_token_id = None
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=24,
            tie_word_embeddings=case == "llama tied",
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        )
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases too: ones and zeros would hide a permutation
            parameter.normal_(0, 0.2)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["llama", "llama tied", "gpt2"])
def test_there_and_back(case: str, dtype: Any, tmp_path: Path) -> None:
    model = model_of(case, dtype)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").eval()

    assert again.dtype == dtype
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for key in (
        "tie_word_embeddings",
        "head_dim",
        "rope_parameters",
        "rms_norm_eps",
        "n_inner",
        "hidden_act",
    ):
        assert getattr(model.config, key, None) == getattr(again.config, key, None), key
    tokens = torch.randint(0, 97, (2, 24))
    theirs = type(model).from_pretrained(tmp_path / "theirs").eval()  # `model` has its RoPE table in `dtype`
    assert torch.equal(theirs(tokens).logits, again(tokens).logits)


def test_shards_of_the_library(tmp_path: Path) -> None:
    model = model_of("llama", torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_fields_of_the_library(tmp_path: Path) -> None:
    model_of("llama", torch.float32).save_pretrained(tmp_path / "llama")
    model, notices = read_hf_model_config(tmp_path / "llama")
    assert (model.arch, model.layers, model.width, model.heads, model.kv_heads) == ("llama", 2, 32, 4, 2)
    assert (model.ffn, model.vocab, model.seq_len, model.tied) == (48, 97, 24, False)
    assert (model.rope_theta, model.norm_eps, notices) == (5000.0, 1e-6, [])
    model_of("gpt2", torch.float32).save_pretrained(tmp_path / "gpt2")
    model, notices = read_hf_model_config(tmp_path / "gpt2")
    assert (model.arch, model.layers, model.width, model.heads, model.kv_heads) == ("gpt2", 2, 32, 4, 4)
    assert (model.ffn, model.vocab, model.seq_len, model.tied, model.norm_eps) == (80, 97, 24, True, 1e-5)
    assert len(notices) == 3
