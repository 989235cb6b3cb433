"""Models by name, as settings: what `--preset` puts in the place of the defaults.

Shapes are those of the papers. Where a paper's table does not say, as with GPT-3's vocabulary, they are those
of the code that came with it.
"""

from typing import Any, NamedTuple

Fields = dict[str, Any]


class Preset(NamedTuple):
    """`world`: ranks, of those that name a layout too."""

    fields: Fields
    world: int | None = None


def _gpt2(layers: int, width: int, heads: int, seq_len: int = 1024) -> Preset:
    """Radford et al. 2019, table 2; and Brown et al. 2020, table 2.1, with GPT-2's vocabulary."""
    return Preset(_model(arch="gpt2", layers=layers, width=width, heads=heads, vocab=50257, seq_len=seq_len))


def _llama(
    layers: int, width: int, heads: int, ffn: int, vocab: int = 32000, seq_len: int = 4096, kv: int = 0
) -> Preset:
    """Touvron et al. 2023 (Llama 2); Dubey et al. 2024, table 3 (Llama 3)."""
    theta = 500000.0 if vocab == 128256 else 10000.0
    fields = _model(
        arch="llama", layers=layers, width=width, heads=heads, kv_heads=kv or heads, ffn=ffn, vocab=vocab,
        seq_len=seq_len, rope_theta=theta, tied=False,
    )  # fmt: skip
    return Preset(fields)


def _llama3(layers: int, width: int, heads: int, ffn: int) -> Preset:
    return _llama(layers, width, heads, ffn, vocab=128256, seq_len=8192, kv=8)


def _megatron(heads: int, width: int, layers: int, tp: int, pp: int, world: int, batch: int) -> Preset:
    """A row of Narayanan et al. 2021, table 1: model, layout, number of GPUs, sequences of a step. Blocks
    were recomputed (3.5).
    """
    model = _model(arch="gpt2", layers=layers, width=width, heads=heads, vocab=51200, seq_len=2048)
    run = {"train.global_batch": batch, "train.micro_batch": 1, "precision": "fp16"}
    layout = {"parallel.tp": tp, "parallel.pp": pp, "parallel.recompute": "full"}
    return Preset({**model, **layout, **run}, world)


def _model(**fields: Any) -> Fields:
    return {f"model.{name}": value for name, value in fields.items()}


PRESETS: dict[str, Preset] = {
    "gpt2-124m": _gpt2(12, 768, 12),
    "gpt2-350m": _gpt2(24, 1024, 16),
    "gpt2-774m": _gpt2(36, 1280, 20),
    "gpt2-1.5b": _gpt2(48, 1600, 25),
    "gpt3-2.7b": _gpt2(32, 2560, 32, 2048),
    "gpt3-6.7b": _gpt2(32, 4096, 32, 2048),
    "gpt3-13b": _gpt2(40, 5120, 40, 2048),  # the paper prints a width of 5140, which 40 heads do not divide
    "gpt3-175b": _gpt2(96, 12288, 96, 2048),
    "llama2-7b": _llama(32, 4096, 32, 11008),
    "llama2-13b": _llama(40, 5120, 40, 13824),
    "llama2-70b": _llama(80, 8192, 64, 28672, kv=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    "llama3-405b": _llama3(126, 16384, 128, 53248),
    "megatron-1.7b": _megatron(24, 2304, 24, 1, 1, 32, 512),
    "megatron-3.6b": _megatron(32, 3072, 30, 2, 1, 64, 512),
    "megatron-7.5b": _megatron(32, 4096, 36, 4, 1, 128, 512),
    "megatron-18b": _megatron(48, 6144, 40, 8, 1, 256, 1024),
    "megatron-39b": _megatron(64, 8192, 48, 8, 2, 512, 1536),
    "megatron-76b": _megatron(80, 10240, 60, 8, 4, 1024, 1792),
    "megatron-146b": _megatron(96, 12288, 80, 8, 8, 1536, 2304),
    "megatron-310b": _megatron(128, 16384, 96, 8, 16, 1920, 2160),
    "megatron-530b": _megatron(128, 20480, 105, 8, 35, 2520, 2520),
    "megatron-1t": _megatron(160, 25600, 128, 8, 64, 3072, 3072),
}
