"""Operations a token, peaks and MFU, against published numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minitrain.config import Config, ModelConfig, RunConfig
from minitrain.observe.flops import OF_PRECISION, PEAKS, flops_per_token, peak_flops
from minitrain.observe.hardware import UNKNOWN, Hardware
from minitrain.observe.recorder import Recorder, StepMetrics
from minitrain.precision import PRECISIONS
from minitrain.resolve import fill_model, resolve

H100 = "NVIDIA H100 80GB HBM3"


def gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    model = ModelConfig(arch="gpt2", layers=layers, width=width, heads=heads, vocab=50257, seq_len=1024)
    return fill_model(model)


# llm.c's runs on 8 H100 SXM: parameters, tokens a second of one of them, and MFU of 989 TFLOP/s.
# scripts/run_gpt2_1558M.sh and discussion 677 there; the first record of modded-nanogpt.
@pytest.mark.parametrize(
    "model, parameters, speed, mfu",
    [(gpt2(48, 1600, 25), 1_557_611_200, 48_500, 0.48), (gpt2(12, 768, 12), 124_439_808, 475_000, 0.39)],
    ids=["1558M", "124M"],
)
def test_llm_c_has_the_same_utilisation(
    model: ModelConfig, parameters: int, speed: float, mfu: float
) -> None:
    flops = flops_per_token(model)
    assert flops == 6 * parameters + 6 * model.layers * model.width * model.seq_len
    peak = peak_flops([H100], "bf16")
    assert peak and abs(peak - 989e12) < 1e12
    assert round(speed * flops / peak, 2) == mfu


def test_products_of_matrices_are_counted_one_by_one() -> None:
    """Of a llama whose gains, counted as if they were matrices, are taken off again."""
    D, F, V, T, L, H, K = 64, 96, 50, 32, 3, 4, 2
    model = fill_model(ModelConfig(layers=L, width=D, heads=H, kv_heads=K, ffn=F, vocab=V, seq_len=T))
    in_block = D * D + 2 * D * (D // H) * K + D * D + 3 * D * F  # q, k and v, o, and three of the MLP
    forward = 2 * (L * in_block + V * D) + L * 2 * (2 * D) * T / 2  # scores and sums, of T / 2 keys
    gains = 6 * (2 * L + 1) * D
    assert flops_per_token(model) - gains == 3 * forward
    tied = flops_per_token(replace(model, tied=True))
    assert tied == flops_per_token(model), "the rows of an embedding are looked up, the head is a product"


def test_peaks() -> None:
    assert set(OF_PRECISION) == set(PRECISIONS)
    assert peak_flops([H100, "NVIDIA H200"], "bf16-pure") == 2 * 989.5e12
    assert peak_flops(["NVIDIA A100-SXM4-80GB"], "fp16") == 312e12
    assert peak_flops(["NVIDIA A100-SXM4-80GB"], "fp32") == 19.5e12
    assert peak_flops(["NVIDIA A100-SXM4-80GB"], "fp8") is None
    assert peak_flops([H100], "fp8") == 1979e12
    assert peak_flops([H100], "fp64") == 67e12
    assert peak_flops([H100, "NVIDIA A100-SXM4-40GB MIG 3g.20gb"], "bf16") is None
    for peak in PEAKS.values():
        assert (peak.fp64 or 0) <= peak.fp32 < peak.half
        assert peak.fp8 in (None, pytest.approx(2 * peak.half, rel=0.03))


@pytest.mark.parametrize("hardware", [UNKNOWN, Hardware("4 ranks on 2 of a kind", 1e12, ("look",))])
def test_what_a_run_records_of_it(
    hardware: Hardware, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve(Config(run=RunConfig(dir=str(tmp_path / "run"), progress="none")), {}, 1).config
    recorder = Recorder(["notice"])
    recorder.begin(config, 0, hardware)
    recorder.step(StepMetrics(1, 2.0, 1.0, 1e-3, 1024, 0.5, 1.0, False, {}, {}))
    shown = capsys.readouterr().out
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    mfu = json.loads(line)["mfu"]
    assert config.train.global_batch
    speed = config.train.global_batch * config.model.seq_len / 0.5
    if hardware is UNKNOWN:
        assert mfu is None and "gpus" not in shown
    else:
        assert mfu == pytest.approx(speed * flops_per_token(config.model) / 1e12)
        assert "  gpus       4 ranks on 2 of a kind\n" in shown
        assert "  note       notice\n  note       look\n" in shown
