"""How long a step takes, by an alpha-beta model: a collective of n ranks in which each sends S bytes takes

    hops x alpha + S / beta         hops: 2 ceil(log2 n) for an all-reduce, ceil(log2 n) for a
                                    reduce-scatter or an all-gather (Thakur et al. 2005), 1 for a message

with alpha and beta of the links of a node where the group lies within one, else of the network: beta is then
k adapters, for the k members that the group has in a node, but no more than a card's link. With m
micro-batches and t_s the time of one on stage s,

    step = m max t + (sum of t - max t) + messages + what is sent once + update

where the second is the bubble: (p - 1) t for equal stages. It is a model and says so: `ASSUMPTIONS`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from minitrain.config import Config
from minitrain.model.spec import block_specs
from minitrain.observe.flops import flops_per_token
from minitrain.observe.traffic import Place, Row, traffic
from minitrain.plan.activations import kept_of_a_block, made_by_a_block
from minitrain.plan.held import SIZES, StageKind, group_sizes, layers_of, layout_of, piece, stage_kinds
from minitrain.plan.machines import Machine
from minitrain.plan.memory import heaviest, persistent

ASSUMPTIONS = (
    "products of matrices run at the machine's `efficiency` of the published peak, whatever their size",
    "everything else runs at the speed of memory: each byte that the backward needs, and each of the "
    "logits, is written and read, and so is its gradient; what is made again once more",
    "links and network run at their published speed, and every group has them to itself",
    "nothing overlaps: neither a collective with arithmetic, nor two collectives",
    "messages of the pipeline cost time where it fills and drains; in between they hide behind others",
    "ranks are placed in order, node by node: tp are neighbours, then pp, then dp",
    "no data is waited for, nothing is checked or written, and no rank is slower than another",
)


OPERATIONS = {"none": (6, 6), "selective": (6, 8), "full": (8, 8)}
"""By `parallel.recompute`: of a token and an element of a block's matrices, and of a pair of positions and a
channel, of which half are left out.
"""


class Part(NamedTuple):
    name: str
    seconds: float
    formula: str


class StepTime(NamedTuple):
    parts: tuple[Part, ...]  # of a step on the slowest stage
    tokens: int  # of a step, of all ranks
    tokens_per_second: float
    mfu: float  # by the convention 6N + 6LCT

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


class _Stage(NamedTuple):
    """Seconds of one micro-batch, and of what comes once a step."""

    products: float
    memory: float
    tp: float
    shard: float
    once: float
    update: float

    @property
    def micro(self) -> float:
        return self.products + self.memory + self.tp + self.shard


def step_time(config: Config, machine: Machine) -> StepTime:
    """Of a precision that the machine has a peak for."""
    at, peak = layout_of(config), machine.peak(config.precision)
    assert peak is not None
    kinds = stage_kinds(config)
    stages = [_stage(config, machine, kind) for kind in kinds]
    slowest = max(stages, key=lambda stage: stage.micro)
    times = [stage.micro for kind, stage in zip(kinds, stages, strict=True) for _ in range(kind.number)]
    message = _message(config, machine)
    m = at.micro
    parts = (
        Part("products", m * slowest.products, "m x operations of a micro-batch / (efficiency x peak)"),
        Part(
            "memory",
            m * slowest.memory,
            "m x (4 (activations + logits) + 2 x those made again) / memory speed",
        ),
        Part("tensor parallel", m * slowest.tp, "m x collectives over tp of a micro-batch"),
        Part("ZeRO, each micro-batch", m * slowest.shard, "m x collectives over shard, kv of a micro-batch"),
        Part(
            "bubble",
            pipeline(times, m) - m * slowest.micro,
            "sum of t over stages - max t; (p - 1) t if all are equal",
        ),
        Part(
            "messages", 2 * (at.pp - 1) * message, "2 (p - 1) (alpha + b s h q / beta): filling and draining"
        ),
        Part("once a step", max(s.once for s in stages), "gradients, parameters, sums for norm and loss"),
        Part(
            "update",
            max(s.update for s in stages),
            "2 x own parameters, gradients, master, moments / memory speed",
        ),
    )
    seconds = sum(part.seconds for part in parts)
    tokens = at.tokens * m * at.dp
    mfu = flops_per_token(config.model) * tokens / (seconds * at.ranks * peak)
    return StepTime(parts, tokens, tokens / seconds, mfu)


def pipeline(times: Sequence[float], m: int) -> float:
    """From the first forward to the last backward of m micro-batches, of which each takes `times` on the
    stages: m max t + (sum of t - max t). Of GPipe, and of 1F1B if all stages are equal; of unequal ones 1F1B
    takes this at most, and at least m max t.
    """
    return sum(times) + (m - 1) * max(times)


def _stage(config: Config, machine: Machine, kind: StageKind) -> _Stage:
    """On its heaviest rank."""
    at, sizes, stage = layout_of(config), SIZES[config.precision], kind.first
    spot, peak = heaviest(config, stage), machine.peak(config.precision)
    assert peak is not None
    logits = at.tokens * ids_held(config, spot.tp) if stage == at.pp - 1 else 0
    made, kept = (of(config, spot.tp, gpu=True) for of in (made_by_a_block, kept_of_a_block))
    activations, again = (layers_of(config, stage) * n for n in (made, made - kept))
    speed = machine.memory_gb_s * 1e9
    own = replace(config, parallel=replace(config.parallel, zero=3))  # at every stage what is updated
    of_micro, once = _sent(config, machine, Place(0, 0, stage, spot.tp))
    return _Stage(
        products=_operations(config, stage, spot.tp, logits) / (machine.efficiency * peak),
        memory=(4 * (activations + logits * sizes.wide) + 2 * again) / speed,
        tp=of_micro["tp"],
        shard=of_micro["shard"] + of_micro["kv"],
        once=once,
        update=2 * persistent(own, spot).total / speed,
    )


def ids_held(config: Config, tp_rank: int) -> int:
    """Rows of the vocabulary."""
    return piece(config.model.vocab, tp_rank, layout_of(config).tp)


def _operations(config: Config, stage: int, tp_rank: int, logits: int) -> int:
    """Of a micro-batch, forward and backward, as they are done: attention leaves out keys that come after.
    A third of both is the forward, which recomputation does again.
    """
    model, at = config.model, layout_of(config)
    matrices = _matrix_elements(config, tp_rank)
    a, b = OPERATIONS[config.parallel.recompute]
    of_block = a * at.tokens * matrices + b * at.tokens * model.seq_len * model.width // at.tp
    return layers_of(config, stage) * of_block + 6 * logits * model.width


def _matrix_elements(config: Config, tp_rank: int) -> int:
    found, t = 0, layout_of(config).tp
    for spec in block_specs(config.model, 0):
        if spec.group == "matrix":
            found += math.prod(cut.stop - cut.start for cut in spec.tp_slice(tp_rank, t))
    return found


def _sent(config: Config, machine: Machine, place: Place) -> tuple[dict[str, float], float]:
    """Seconds that this rank spends on collectives: by axis for a micro-batch, and once a step.

    What belongs to micro-batches is what there is more of with more of them. Messages of the pipeline are not
    in it.
    """
    train, m = config.train, layout_of(config).micro
    assert train.global_batch
    twice = replace(config, train=replace(train, global_batch=2 * train.global_batch))
    calls = {(row.axis, row.verb, row.what): row.calls for row in traffic(twice, place)}
    of_micro, once = dict.fromkeys(("tp", "shard", "kv"), 0.0), 0.0
    for row in traffic(config, place):
        if row.axis == "pp" and row.verb == "send":
            continue
        one = _collective(config, machine, row)
        if calls[row.axis, row.verb, row.what] > row.calls:
            of_micro[row.axis] += row.calls * one / m
        else:
            once += row.calls * one
    return of_micro, once


def _collective(config: Config, machine: Machine, row: Row) -> float:
    size, alpha, beta = group(config, machine, row.axis)
    hops = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}.get(row.verb, 0) * (size - 1).bit_length()
    return max(1, hops) * alpha + row.sent / row.calls / beta


def _message(config: Config, machine: Machine) -> float:
    """Activations or gradients, from one stage to the next."""
    at, model = layout_of(config), config.model
    if at.pp == 1:
        return 0.0
    _, alpha, beta = group(config, machine, "pp")
    return alpha + at.rows * model.width * SIZES[config.precision].param / beta


def group(config: Config, machine: Machine, axis: str) -> tuple[int, float, float]:
    """Of an axis: its ranks, and alpha in seconds and beta in bytes a second between them."""
    at, size = layout_of(config), group_sizes(config)[axis]
    model = at.tp * at.pp
    stride = {
        "tp": 1, "kv": 1, "pp": at.tp, "tied": model - at.tp, "shard": model, "replica": model * at.shard,
        "dp": model, "world": 1,
    }[axis]  # fmt: skip
    link, network = machine.link_gb_s * 1e9, machine.network_gb_s * 1e9
    span = model if axis in ("pp", "tied") else stride * size
    if at.ranks <= machine.cards or machine.cards % span == 0:
        return size, machine.link_us * 1e-6, link
    in_a_node = 1 if axis in ("pp", "tied") else max(1, min(size, machine.cards // stride))
    return size, machine.network_us * 1e-6, min(link, in_a_node * network)
