"""config.json of a Hugging Face directory, to a ModelConfig and back. What we do not compute is refused."""

import json
import os
import reprlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from minitrain.config import Config, ModelConfig
from minitrain.errors import CheckpointError
from minitrain.small_file import read_small
from minitrain.validate import out_of_range

CONFIG = "config.json"
LARGEST = 1 << 20  # bytes of it
LARGEST_FLOAT = sys.float_info.max  # a whole number in JSON may be larger
shown = reprlib.repr  # a value in a message: no more than a line of it, however large or deep it is
TOKENIZER_KEY = "minitrain_tokenizer"  # ours: which built-in tokenizer the ids belong to

# Fields whose other values mean another computation. The first value stands for an absent field.
SUPPORTED: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "sliding_window": (None,),
        "partial_rotary_factor": (1,),
        "quantization_config": (None,),
    },
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
        "sliding_window": (None,),
        "quantization_config": (None,),
    },
}
DROPOUT = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


class _Fields:
    """The fields of one config.json, fetched with a check of their type."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def refuse(self, what: str, remedy: str) -> CheckpointError:
        return CheckpointError(what, str(self.path), remedy)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"{key} is not given", "complete the file")
        if type(value) is not int or value < 1:
            raise self.refuse(f"{key} {shown(value)} is no positive whole number", "correct the file")
        return value

    def positive(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST_FLOAT:
            raise self.refuse(f"{key} {shown(value)} is no positive number", "correct the file")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} {shown(value)} is neither true nor false", "correct the file")
        return value


def read_hf_model_config(directory: str | Path) -> tuple[ModelConfig, list[str]]:
    """(every field of the model, notices). Raises CheckpointError for what is damaged or not supported."""
    fields = _Fields(Path(directory) / CONFIG, read_config_file(directory))
    arch = fields.values.get("model_type")
    if not isinstance(arch, str) or arch not in SUPPORTED:
        remedy = f"give a model of type {' or '.join(SUPPORTED)}"
        raise fields.refuse(f"model_type {shown(arch)} is not supported", remedy)
    for key, values in SUPPORTED[arch].items():
        value = fields.values.get(key, values[0])
        if value not in values or isinstance(value, bool) != isinstance(values[0], bool):
            remedy = f"give a model with {key} {values[0]!r}"
            raise fields.refuse(f"{key} {shown(value)} is not supported", remedy)
    model = _llama(fields) if arch == "llama" else _gpt2(fields)
    if problems := out_of_range(Config(model=model)):
        raise fields.refuse(next(iter(problems.values())).what, "correct the file")
    _check_heads(fields, model)
    dropped = [(key, shown(fields.values[key])) for key in DROPOUT if fields.values.get(key)]
    return model, [f"{key} {value} of {fields.path} is not applied: it runs as 0" for key, value in dropped]


def read_hf_tokenizer(directory: str | Path) -> str | None:
    """The built-in tokenizer that the model was trained with, None where the directory does not say."""
    value = read_config_file(directory).get(TOKENIZER_KEY)
    return value if isinstance(value, str) else None


def hf_config(model: ModelConfig, dtype: np.dtype[np.generic], tokenizer: str | None) -> dict[str, object]:
    """The contents of config.json, complete for versions 4 and 5 of transformers."""
    common = {
        "model_type": model.arch,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied,
        "bos_token_id": None,  # the defaults of transformers may lie beyond the vocabulary
        "eos_token_id": None,
        "dtype": dtype.name,
        "torch_dtype": dtype.name,
    }
    if tokenizer is not None:
        common[TOKENIZER_KEY] = tokenizer
    if model.arch == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "activation_function": "gelu_new",
            "n_embd": model.width,
            "n_head": model.heads,
            "n_inner": model.ffn,
            "n_layer": model.layers,
            "n_positions": model.seq_len,
            "layer_norm_epsilon": model.norm_eps,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": model.width // model.heads,
        "hidden_act": "silu",
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "max_position_embeddings": model.seq_len,
        "mlp_bias": False,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
    }


def read_config_file(directory: str | Path) -> dict[str, Any]:
    """config.json as it is. Raises CheckpointError where there is none or it is damaged."""
    path = Path(directory) / CONFIG
    remedy = "give a Hugging Face directory of a Llama or GPT-2 model"
    if not os.path.isdir(directory):
        raise CheckpointError("the directory is not there", str(directory), remedy)
    if not os.path.isfile(path):
        raise CheckpointError(f"the directory has no {CONFIG}", str(directory), remedy)
    try:
        values = json.loads(read_small(path, LARGEST))
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"the file cannot be read ({problem})", str(path), "copy it again") from None
    if not isinstance(values, dict):
        raise CheckpointError("the file holds no JSON object", str(path), "copy it again")
    return values


def _llama(fields: _Fields) -> ModelConfig:
    heads = fields.count("num_attention_heads")
    return ModelConfig(
        arch="llama",
        layers=fields.count("num_hidden_layers"),
        width=fields.count("hidden_size"),
        heads=heads,
        kv_heads=fields.count("num_key_value_heads", heads),
        ffn=fields.count("intermediate_size"),
        vocab=fields.count("vocab_size"),
        seq_len=fields.count("max_position_embeddings", 2048),
        tied=fields.flag("tie_word_embeddings", False),
        rope_theta=_rope_theta(fields),
        norm_eps=fields.positive("rms_norm_eps", fields.values.get("rms_norm_eps", 1e-6)),
    )


def _gpt2(fields: _Fields) -> ModelConfig:
    heads, width = fields.count("n_head"), fields.count("n_embd")
    return ModelConfig(
        arch="gpt2",
        layers=fields.count("n_layer"),
        width=width,
        heads=heads,
        kv_heads=heads,
        ffn=fields.count("n_inner", 4 * width),
        vocab=fields.count("vocab_size"),
        seq_len=fields.count("n_positions", 1024),
        tied=fields.flag("tie_word_embeddings", True),
        norm_eps=fields.positive("layer_norm_epsilon", fields.values.get("layer_norm_epsilon", 1e-5)),
    )


def _rope_theta(fields: _Fields) -> float:
    """transformers 4: `rope_theta` and `rope_scaling`; 5: both inside `rope_parameters`."""
    theta = fields.values.get("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise fields.refuse(f"{key} {shown(rope)} is not supported", "give a model without RoPE scaling")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise fields.refuse(
                f"{key} of type {shown(kind)} is not supported", "give a model without RoPE scaling"
            )
        if rope.get("partial_rotary_factor", 1) != 1:
            raise fields.refuse(
                f"{key} with partial_rotary_factor is not supported", "give a model without it"
            )
        theta = rope.get("rope_theta", theta)
    return fields.positive("rope_theta", theta)


def _check_heads(fields: _Fields, model: ModelConfig) -> None:
    """Head widths that our layout does not have."""
    assert model.kv_heads is not None
    if model.width % model.heads:
        what = f"width {model.width} is no multiple of {model.heads} heads"
        raise fields.refuse(what, "correct the file")
    K = model.width // model.heads
    if fields.values.get("head_dim", K) not in (K, None):
        what = f"head_dim {shown(fields.values['head_dim'])} is not width {model.width} / {model.heads} heads"
        raise fields.refuse(what, "give a model whose head width is width / heads")
    if model.heads % model.kv_heads:
        what = f"{model.heads} heads are no multiple of {model.kv_heads} key/value heads"
        raise fields.refuse(what, "correct the file")
    if model.arch == "llama" and K % 2:
        raise fields.refuse(
            f"head width {K} is odd, but RoPE rotates pairs", "give a model of even head width"
        )
