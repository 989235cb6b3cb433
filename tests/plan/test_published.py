"""What papers print, each number with its source, to the digits that they print."""

from dataclasses import replace
from fractions import Fraction

import pytest
from layouts import LLAMA, tiny

from minitrain.arguments import Arguments
from minitrain.config import Config, ModelConfig
from minitrain.plan.bubble import Work, bubble
from minitrain.plan.flops import conventions
from minitrain.plan.held import Spot, n_parameters
from minitrain.plan.machines import MACHINES
from minitrain.plan.memory import persistent
from minitrain.plan.prediction import predict
from minitrain.plan.presets import PRESETS
from minitrain.plan.textbook import RECIPES, TEXTBOOK, activations, model_states
from minitrain.resolve import resolve
from minitrain.settings import read_settings

MIXED, _, _, PURE = RECIPES


def configured(name: str) -> Config:
    preset = PRESETS[name]
    settings = read_settings(Arguments("plan", set()), preset.fields)
    resolved = resolve(settings.config, settings.given, preset.world or 1)
    assert not settings.problems and not resolved.problems
    return resolved.config


# Rajbhandari et al. 2020 (ZeRO), figure 1: 7.5 B parameters, 64-way data parallel, K = 12.
@pytest.mark.parametrize("zero, printed", [*enumerate(["120.0", "31.4", "16.6", "1.9"])])
def test_memory_of_zero(zero: int, printed: str) -> None:
    assert f"{sum(model_states(MIXED, 7_500_000_000, zero, 64)) / 1e9:.1f}" == printed


# Its table 1, of which a few: B parameters, ranks, GB of P_os, P_os+g, P_os+g+p. Some are rounded, some cut.
@pytest.mark.parametrize(
    "psi, ranks, printed",
    [
        (7.5, 4, ("52.5", "41.3", "30")),
        (7.5, 1024, ("30.1", "15.1", "0.12")),
        (128, 16, ("608", "368", "128")),
        (1000, 1024, ("4011", "2013", "15.6")),
    ],
)
def test_table_of_zero(psi: float, ranks: int, printed: tuple[str, ...]) -> None:
    for zero, number in enumerate(printed, 1):
        last_digit = 10.0 ** -len(number.partition(".")[2])
        found = sum(model_states(MIXED, int(psi * 1e9), zero, ranks)) / 1e9
        assert abs(found - float(number)) < last_digit


def test_the_textbook_s_table_of_10_b_parameters() -> None:
    """Pure bf16: 20 + 20 + 20 + 20 = 80 GB; over N ranks stage 1 cuts the last two, stage 2 three, 3 all."""
    GB = 10**9
    assert model_states(PURE, TEXTBOOK, 0, 8) == (20 * GB, 20 * GB, 40 * GB)
    for n in (2, 8, 64):
        totals = [sum(model_states(PURE, TEXTBOOK, zero, n)) / GB for zero in range(4)]
        assert totals == pytest.approx([80, 40 + 40 / n, 20 + 60 / n, 80 / n], rel=1e-15)


def test_activations_of_a_layer() -> None:
    """Korthikanti et al. 2022, table 2, put together from section 4.1: in bytes, of s b h."""
    s, b, h, a, t = 2048, 4, 12288, 96, 8
    one, scores = s * b * h, Fraction(a * s, h)
    attention = 2 + 4 + 2 + 2 + 1  # input of q, k, v; q and k; v; input of o; mask of its dropout
    mlp, norms = 2 + 8 + 8 + 1, 2 + 2
    square = 2 + 1 + 2  # softmax, mask, output of dropout
    assert attention + mlp + norms == 34
    uncut = norms + 2 + 2 + 1 + 1  # two LayerNorms; inputs of attention and MLP; two masks
    expected = {
        "no parallelism": 34 + square * scores,
        "tensor": uncut + Fraction(34 - uncut, t) + square * scores / t,
        "tensor, sequence": (34 + square * scores) / t,
        "tensor, selective": uncut + Fraction(34 - uncut, t),
        "tensor, sequence, selective": Fraction(34, t),
        "full recomputation": 2,
    }
    found = {row.case: row.bytes for row in activations(s, b, h, a, t)}
    assert found == pytest.approx({case: float(one * n) for case, n in expected.items()}, rel=1e-15)


@pytest.mark.parametrize(
    "name, a, s, h, scores, saved", [("GPT-3", 96, 2048, 12288, 80, 70), ("MT-NLG", 128, 2048, 20480, 64, 65)]
)
def test_scores_are_most_of_a_large_model_s_activations(
    name: str, a: int, s: int, h: int, scores: int, saved: int
) -> None:
    """Korthikanti et al. 2022, section 5: 5 a s / h, and what selective recomputation saves, in percent."""
    whole, selective = (row.bytes / (s * h) for row in activations(s, 1, h, a, 1)[0::3][:2])
    assert whole - selective == scores and selective == 34
    assert round(100 * scores / whole) == saved


# Narayanan et al. 2021, table 1: B parameters; TFLOP/s of a GPU, percent of 312, PFLOP/s of all GPUs.
TABLE_1 = {
    "megatron-1.7b": ("1.7", 137, 44, 4.4),
    "megatron-3.6b": ("3.6", 138, 44, 8.8),
    "megatron-7.5b": ("7.5", 142, 46, 18.2),
    "megatron-18b": ("18.4", 135, 43, 34.6),
    "megatron-39b": ("39.1", 138, 44, 70.8),
    "megatron-76b": ("76.1", 140, 45, 143.8),
    "megatron-146b": ("145.6", 148, 47, 227.1),
    "megatron-310b": ("310.1", 155, 50, 297.4),
    "megatron-530b": ("529.6", 163, 52, 410.2),
    "megatron-1t": ("1008.0", 163, 52, 502.0),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_a_row_of_narayanan_s_table(name: str) -> None:
    printed, tera, percent, peta = TABLE_1[name]
    config = configured(name)
    model, ranks = config.model, PRESETS[name].world
    L, h, V, s = model.layers, model.width, model.vocab, model.seq_len
    N = n_parameters(model)
    assert f"{N / 1e9:.1f}" == printed
    # Equation 2 leaves out the final norm.
    assert N - 2 * h == 12 * L * h * h * (1 + Fraction(13, 12 * h) + Fraction(V + s, 12 * L * h))
    # Equation 3: of B sequences 96 B s L h^2 (1 + s / 6h + V / 16Lh).
    _, _, _, causal, full, recomputed = conventions(model)
    assert recomputed.flops == 96 * L * h * h * (1 + Fraction(s, 6 * h) + Fraction(V, 16 * L * h))
    assert full.flops == 72 * L * h * h * (1 + Fraction(s, 6 * h) + Fraction(V, 12 * L * h))
    assert causal.flops == full.flops - 6 * L * h * s
    # The printed columns hang together, so they were copied right: N, GPUs, TFLOP/s and percent.
    assert ranks and abs(tera * ranks / 1000 - peta) <= 0.5 * ranks / 1000 + 0.05
    assert abs(100 * tera / 312 - percent) <= 0.5 + 100 * 0.5 / 312


def test_a_trillion_parameters_take_84_days() -> None:
    """Narayanan et al. 2021, section 5.1: 8 T P / (n X), T = 450 B tokens, n = 3072, X = 163 TFLOP/s. By the
    operations counted one by one it is a day more.
    """
    model = configured("megatron-1t").model
    day, speed, tokens = 86400, 3072 * 163e12, 450e9
    assert round(8 * n_parameters(model) * tokens / speed / day) == 84
    assert round(conventions(model)[-1].flops * tokens / speed / day) == 85


@pytest.mark.parametrize("name", TABLE_1)
def test_plans_of_narayanan_s_rows_are_made(name: str) -> None:
    """Layouts are those of the paper, and a plan looks at no more kinds of stages than there are."""
    config = configured(name)
    p = config.parallel
    assert p.dp and p.tp and p.pp and p.dp * p.tp * p.pp == PRESETS[name].world
    prediction = predict(config, MACHINES["a100-80gb"])
    assert len(prediction.holdings) <= 4 and prediction.time


# Of the weights that the authors published.
PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_presets(name: str) -> None:
    assert n_parameters(configured(name).model) == PARAMETERS[name]


def test_llama_3_turns_more_slowly() -> None:
    """Dubey et al. 2024, table 3: a RoPE base of 500,000."""
    bases = {name: configured(name).model.rope_theta for name in PRESETS if name.startswith("llama")}
    assert bases == {name: 500_000.0 if "llama3" in name else 10_000.0 for name in bases}


# Brown et al. 2020, table 2.1.
@pytest.mark.parametrize(
    "name, printed", [("gpt3-2.7b", 2.7), ("gpt3-6.7b", 6.7), ("gpt3-13b", 13.0), ("gpt3-175b", 175)]
)
def test_parameters_of_gpt3(name: str, printed: float) -> None:
    assert n_parameters(configured(name).model) / 1e9 == pytest.approx(printed, rel=0.02)


def test_every_preset_is_held_to_something() -> None:
    of_gpt3 = {name for name in PRESETS if name.startswith("gpt3")}
    assert set(PRESETS) == set(PARAMETERS) | set(TABLE_1) | of_gpt3


def test_conventions_of_gpt2() -> None:
    """Of 124M at 1024 positions: 746.6 M, 803.3 M (llm.c), 859.9 M (nanoGPT with all its parameters)."""
    a, b, c, *_ = conventions(configured("gpt2-124m").model)
    assert [f"{one.flops / 1e6:.1f}" for one in (a, b, c)] == ["746.6", "803.3", "859.9"]


def test_an_untied_embedding_does_not_count() -> None:
    model = ModelConfig(layers=3, width=64, heads=4, kv_heads=2, ffn=96, vocab=50, seq_len=32, tied=False)
    first = conventions(model)[0]
    assert first.flops == 6 * (n_parameters(model) - 50 * 64)


# p, m, v and the two ratios. Narayanan et al. 2021, 2.2: (p-1)/m, and with v chunks a v-th of it.
@pytest.mark.parametrize(
    "schedule, p, m, ratio, fraction, kept",
    [
        ("gpipe", 4, 8, Fraction(3, 8), Fraction(3, 11), 8),
        ("1f1b", 4, 8, Fraction(3, 8), Fraction(3, 11), 4),
        ("1f1b", 4, 2, Fraction(3, 2), Fraction(3, 5), 2),
        ("interleaved", 4, 8, Fraction(3, 16), Fraction(3, 19), 5.5),
        ("zb-h1", 4, 8, Fraction(1, 8), Fraction(1, 9), 4),
        ("zb-h2", 4, 8, 0, 0, 7),
        ("1f1b", 1, 8, 0, 0, 1),
    ],
)
def test_bubbles(schedule: str, p: int, m: int, ratio: float, fraction: float, kept: float) -> None:
    """Qi et al. 2023: with equal times of forward and both halves of the backward ZB-H1 has a third of the
    bubble of 1F1B, and ZB-H2 none, for up to 2p - 1 micro-batches in memory.
    """
    found = bubble(schedule, p, m)
    assert (found.ratio, found.fraction, found.kept) == pytest.approx((float(ratio), float(fraction), kept))


def test_bubbles_of_unequal_halves() -> None:
    """Qi et al. 2023 count T_B without T_W: (p-1)(T_F + T_B - T_W) and (p-1)(T_F + T_B - 2 T_W)."""
    F, halves, W = 3.0, 4.0, 2.5
    work = Work(F, halves + W, W)
    assert bubble("zb-h1", 5, 10, work).idle == 4 * (F + halves - W)
    assert bubble("zb-h2", 5, 10, work).idle == 4 * (F + halves - 2 * W)


def test_ours_are_the_textbook_s_without_layouts_and_padding() -> None:
    """ZeRO over ranks that divide every unit; tests/test_memory.py holds measured bytes to the same."""
    model = replace(LLAMA, layers=4, width=64, heads=8, kv_heads=8, ffn=128, vocab=128, seq_len=32)
    recipes = {"fp16": MIXED, "bf16": RECIPES[1], "fp32": RECIPES[2], "bf16-pure": PURE}
    for precision, recipe in recipes.items():
        for zero in range(4):
            config = replace(tiny(model, dp=8, zero=zero), precision=precision)  # type: ignore[arg-type]
            expected = model_states(recipe, n_parameters(model), zero, 8)
            found = persistent(config, Spot(0, 0))
            assert (found.parameters, found.gradients, found.master + found.moments) == expected
