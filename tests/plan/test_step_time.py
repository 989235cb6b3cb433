"""The alpha-beta model by hand, on a machine of round numbers. No rank runs here."""

from dataclasses import replace
from typing import Any

import pytest
from layouts import tiny

from minitrain.config import Config, ModelConfig
from minitrain.plan.flops import conventions
from minitrain.plan.held import Spot
from minitrain.plan.machines import Machine
from minitrain.plan.memory import persistent
from minitrain.plan.step_time import Part, StepTime, group, step_time

H, B, S, L, V = 64, 2, 32, 4, 128  # width, sequences of a micro-batch, positions, layers, vocabulary
MODEL = ModelConfig(
    arch="llama", layers=L, width=H, heads=8, kv_heads=2, ffn=128, vocab=V, seq_len=S, tied=False
)
MACHINE = Machine(
    half=100, fp32=10, fp64=1, fp8=None, memory_gb=1, memory_gb_s=1000, cards=4, link_gb_s=100,
    network_gb_s=10, link_us=1, network_us=10, efficiency=0.5,
)  # fmt: skip
LINK, NETWORK = (1e-6, 100e9), (1e-5, 10e9)  # alpha, beta
X = B * S * H * 2  # bytes of activations, fp16


def config(m: int = 1, model: ModelConfig = MODEL, **parallel: Any) -> Config:
    c = replace(tiny(model, **parallel), precision="fp16")
    assert c.parallel.dp
    return replace(c, train=replace(c.train, micro_batch=B, global_batch=c.parallel.dp * B * m))


def part(time: StepTime, name: str) -> float:
    (found,) = [p.seconds for p in time.parts if p.name == name]
    return found


def approx(x: float) -> Any:
    return pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(
    "layout", [dict(), dict(dp=2), dict(tp=2), dict(pp=4), dict(dp=2, tp=2, pp=2)], ids=str
)
def test_products_are_those_of_the_model(layout: dict[str, Any], m: int) -> None:
    """Of one card all; cut over tp a share, but for kv heads (not here, tp = 2); of a pipeline the last stage
    is the slowest, with its blocks and the head.
    """
    c = config(m, **layout)
    pp, tp = layout.get("pp", 1), layout.get("tp", 1)
    causal = conventions(MODEL)[3].flops
    head = 6 * V * H
    of_a_token = (causal - head) / pp + head
    expected = of_a_token * B * S * m / tp / (0.5 * 100e12)
    assert part(step_time(c, MACHINE), "products") == approx(expected)


def test_what_is_kept_is_written_and_read_twice() -> None:
    q, w = 2, 4
    norms = 2 * (2 * q * B * S * H + w * B * S)
    attention = q * B * S * 8 * (2 * 8 + 2 * 2) + w * B * 8 * S + q * B * 8 * S * S  # heads of 8: no flash
    mlp = q * B * S * 128 * 3
    logits = B * S * V * w
    for m in (1, 3):
        time = step_time(config(m), MACHINE)
        assert part(time, "memory") == approx(m * 4 * (L * (norms + attention + mlp) + logits) / 1000e9)


@pytest.mark.parametrize("m", [1, 3])
def test_recomputation_is_a_forward_of_all_blocks(m: int) -> None:
    """Its products, which are a third of all; what it writes and reads; and its two all-reduces a block."""
    kept, again = (
        step_time(config(m, replace(MODEL, kv_heads=8), tp=2, recompute=name), MACHINE)
        for name in ("none", "full")
    )
    head = 6 * V * H * B * S * m / 2 / (0.5 * 100e12)
    assert part(again, "products") - head == approx(4 / 3 * (part(kept, "products") - head))
    logits = B * S * V // 2 * 4
    made = part(kept, "memory") / m * 1000e9 / 4 - logits
    assert part(again, "memory") - part(kept, "memory") == approx(m * 2 * (made - L * X) / 1000e9)
    one = 2 * LINK[0] + X / LINK[1]
    assert part(again, "tensor parallel") - part(kept, "tensor parallel") == approx(m * 2 * L * one)


def test_recomputation_of_scores_is_a_forward_of_attention() -> None:
    kept, again = (step_time(config(recompute=name), MACHINE) for name in ("none", "selective"))
    more = 2 * L * B * S * S * H / (0.5 * 100e12)
    assert part(again, "products") - part(kept, "products") == pytest.approx(more, rel=1e-9)
    scores = 2 * B * 8 * S * S + 4 * B * 8 * S
    assert part(again, "memory") - part(kept, "memory") == pytest.approx(L * 2 * scores / 1000e9, rel=1e-9)
    assert part(again, "tensor parallel") == 0


def test_tensor_parallel() -> None:
    """Four all-reduces a block, one of the embedding, one of the head's input, and two of the loss."""
    alpha, beta = LINK
    for m, t, hops in ((1, 2, 2), (3, 4, 4)):
        one = hops * alpha + 2 * X * (t - 1) / t / beta
        loss = 2 * hops * alpha + 3 * 2 * (B * S * 4) * (t - 1) / t / beta
        found = part(step_time(config(m, replace(MODEL, kv_heads=8), tp=t), MACHINE), "tensor parallel")
        assert found == approx(m * ((4 * L + 2) * one + loss))


def test_visits_of_zero_3() -> None:
    """Gathered in forward and backward, scattered in the backward; head and embedding are gathered twice too,
    but head in one visit. Nothing of parameters or gradients is left for the end of the step.
    """
    alpha, beta = LINK
    n, m = 2, 3
    c = config(m, dp=n, zero=3)
    bytes_of = {"blocks": 2 * (H * H * 2 + 2 * H * 16 + 3 * H * 128 + 2 * H), "ends": 2 * V * H}
    calls = 3 * L + 2 + 2
    gathered = 3 * L * bytes_of["blocks"] + 2 * bytes_of["ends"] + 2 * (bytes_of["ends"] + 2 * H)
    time = step_time(c, MACHINE)
    assert part(time, "ZeRO, each micro-batch") == approx(m * (calls * alpha + gathered * (n - 1) / n / beta))
    scalars = 3 * (2 * alpha + 8 / beta)  # norm over shard, loss over dp, verdict over the world
    assert part(time, "once a step") == approx(scalars)


def test_all_reduce_of_gradients_comes_once() -> None:
    for m in (1, 3):
        alpha, beta = LINK
        c = config(m, dp=4)
        psi = persistent(c, Spot(0, 0)).gradients
        found = part(step_time(c, MACHINE), "once a step")
        assert found == approx((L + 2) * 4 * alpha + 2 * psi * 3 / 4 / beta + 2 * (4 * alpha + 12 / beta))


def test_bubble_and_messages() -> None:
    m, p = 3, 4
    time = step_time(config(m, pp=p), MACHINE)
    alpha, beta = LINK
    assert part(time, "messages") == approx(2 * (p - 1) * (alpha + X / beta))
    last = part(time, "products") + part(time, "memory")
    others = part(step_time(config(m, replace(MODEL, layers=4), pp=p), MACHINE), "bubble")
    head = 6 * V * H * B * S / (0.5 * 100e12) + 4 * B * S * V * 4 / 1000e9
    assert others == approx((p - 1) * (last / m - head))
    sequence = step_time(config(m, pp=2, tp=2, sequence=True), MACHINE)
    assert part(sequence, "messages") == approx(2 * (alpha + X / 2 / beta))


def test_update() -> None:
    for zero, n in ((0, 1), (1, 2), (2, 2), (3, 2)):
        c = config(dp=2, zero=zero)
        held = persistent(config(dp=1), Spot(0, 0)).total
        assert part(step_time(c, MACHINE), "update") == approx(2 * held / n / 1000e9)


def test_mfu_is_of_all_ranks() -> None:
    c = config(3, dp=2, tp=2, pp=2)
    time = step_time(c, MACHINE)
    assert time.tokens == 2 * 3 * B * S
    assert time.seconds == approx(sum(p.seconds for p in time.parts))
    assert time.tokens_per_second == approx(time.tokens / time.seconds)
    assert time.mfu * time.seconds * 8 * 100e12 == approx(conventions(MODEL)[1].flops * time.tokens)
    assert all(isinstance(p, Part) and p.formula for p in time.parts)


# On nodes of 4 cards; tp are neighbours, then pp, then dp.
@pytest.mark.parametrize(
    "layout, axis, size, alpha, beta",
    [
        (dict(tp=4, dp=4), "tp", 4, *LINK),
        (dict(tp=4, dp=4), "dp", 4, *NETWORK),
        (dict(tp=8, dp=2), "tp", 8, 1e-5, 40e9),  # 4 of its cards in each node have 4 adapters
        (dict(tp=8, dp=2), "kv", 4, *LINK),  # 8 ranks for 2 kv heads
        (dict(tp=2, dp=8), "dp", 8, 1e-5, 20e9),
        (dict(tp=2, dp=8), "world", 16, 1e-5, 40e9),
        (dict(pp=4, dp=4), "pp", 4, *LINK),
        (dict(pp=4, tp=2, dp=2), "pp", 4, *NETWORK),
        (dict(pp=4, tp=2, dp=2), "tied", 2, *NETWORK),
        (dict(pp=2, tp=2, dp=4), "tied", 2, *LINK),
        (dict(dp=16, zero=1, shard=4), "shard", 4, *LINK),
        (dict(dp=16, zero=1, shard=4), "replica", 4, *NETWORK),
        (dict(dp=3), "dp", 3, *LINK),  # all in one node
        (dict(dp=6), "dp", 6, 1e-5, 40e9),
        (dict(dp=2, pp=3), "pp", 3, *NETWORK),  # the second replica's stages lie in two nodes
    ],
)
def test_where_groups_lie(layout: dict[str, Any], axis: str, size: int, alpha: float, beta: float) -> None:
    model = replace(MODEL, heads=8, kv_heads=2)
    assert group(config(model=model, **layout), MACHINE, axis) == (size, approx(alpha), approx(beta))


def test_a_card_sends_no_faster_than_its_link() -> None:
    fast = replace(MACHINE, network_gb_s=50)
    assert group(config(dp=16), fast, "dp") == (16, approx(1e-5), approx(100e9))
