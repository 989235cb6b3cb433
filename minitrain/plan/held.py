"""Who holds what: the parameters of a rank as the flat vectors that `parallel/unit.py` makes, counted.

A unit's tensors lie one after another, each at a multiple of `align`; the vector is padded to equal shards of
whole such multiples. Order: what does not decay, then what does; within each, first what every tp rank holds
whole, then what several hold copies of (kv heads), then what is cut. Where a shard begins and ends in it
matters to optimizers that remember different things of different tensors.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from minitrain.config import Config, ModelConfig
from minitrain.model.spec import (
    ParamSpec,
    block_specs,
    embedding_specs,
    head_specs,
    position_specs,
    stage_layers,
)


class Sizes(NamedTuple):
    """Bytes of an element. `wide`: of what is never rounded to 16 bits, such as logits and statistics."""

    param: int  # and activations
    grad: int
    master: int  # and moments; where it is no larger than `param` the parameter is its own master copy
    wide: int


SIZES = {
    "fp64": Sizes(8, 8, 8, 8),
    "fp32": Sizes(4, 4, 4, 4),
    "fp16": Sizes(2, 2, 4, 4),
    "bf16": Sizes(2, 4, 4, 4),
    "bf16-pure": Sizes(2, 2, 2, 4),
    "fp8": Sizes(2, 4, 4, 4),
}
BLOCK = 256  # elements: of 8-bit moments with one scale, and of a sum under run.exact


class Layout(NamedTuple):
    """The resolved numbers of `parallel` and of the batch."""

    dp: int
    shard: int
    pp: int
    tp: int
    zero: int
    micro: int  # micro-batches of a step
    tokens: int  # of a micro-batch
    sequence: bool

    @property
    def ranks(self) -> int:
        return self.dp * self.pp * self.tp

    @property
    def rows(self) -> int:
        """S, of the tokens of a micro-batch those that a rank holds outside the tensor-parallel region."""
        return self.tokens // self.tp if self.sequence else self.tokens


class Spot(NamedTuple):
    """A rank as far as memory depends on it: replicas hold the same."""

    stage: int
    tp: int
    shard: int = 0


class Unit(NamedTuple):
    """Parameters with one flat vector, and `number` of equal units on the stage."""

    name: str
    number: int
    tensors: tuple[tuple[ParamSpec, int], ...]  # in the order of memory, with the elements held of each
    align: int
    full: int  # elements of the padded vector
    own: int  # of a shard

    def own_elements(self, shard: int) -> list[tuple[ParamSpec, int]]:
        """Of each tensor what lies in the shard: no padding."""
        found, start, low = [], 0, shard * self.own
        for spec, size in self.tensors:
            start = _up(start, self.align)
            stop = start + size
            found.append((spec, max(0, min(stop, low + self.own) - max(start, low))))
            start = stop
        return found


class StageKind(NamedTuple):
    """Stages that hold equally much: of these the first, which has most micro-batches in flight."""

    first: int
    number: int


def layout_of(config: Config) -> Layout:
    p, train = config.parallel, config.train
    assert p.dp and p.shard and p.pp and p.tp and train.global_batch, "the configuration is resolved"
    return Layout(
        p.dp, p.shard, p.pp, p.tp, p.zero,
        micro=train.global_batch // (p.dp * train.micro_batch),
        tokens=train.micro_batch * config.model.seq_len,
        sequence=p.sequence and p.tp > 1,
    )  # fmt: skip


def group_sizes(config: Config) -> dict[str, int]:
    """Ranks of a group, by axis."""
    at, kv_heads = layout_of(config), config.model.kv_heads
    assert kv_heads, "the configuration is resolved"
    return {
        "tp": at.tp, "pp": at.pp, "dp": at.dp, "shard": at.shard, "replica": at.dp // at.shard, "tied": 2,
        "kv": max(1, at.tp // kv_heads), "world": at.ranks,
    }  # fmt: skip


def piece(n: int, rank: int, size: int) -> int:
    """How many of n rows a rank holds, as even as whole rows allow; the last holds no fewer than another."""
    return n * (rank + 1) // size - n * rank // size


def layers_of(config: Config, stage: int) -> int:
    """Blocks of a stage."""
    return len(stage_layers(config.model.layers, stage, layout_of(config).pp))


def stage_kinds(config: Config) -> list[StageKind]:
    """In order. First and last are each a kind of their own, for they hold embedding and head."""
    pp = layout_of(config).pp
    edges = sorted({0, 1, config.model.layers % pp, pp - 1, pp})
    return [StageKind(a, b - a) for a, b in itertools.pairwise(edges)]


def units_of(config: Config, spot: Spot) -> list[Unit]:
    """In the order of the forward pass."""
    model, at = config.model, layout_of(config)
    first, last = spot.stage == 0, spot.stage == at.pp - 1
    align = BLOCK if config.optim.name == "adam8bit" or config.run.exact else 1
    units = []

    def add(name: str, number: int, specs: Sequence[ParamSpec]) -> None:
        tensors = _tensors(tuple(specs), spot.tp, at.tp)
        size = 0
        for _, n in tensors:
            size = _up(size, align) + n
        full = _up(size, at.shard * align)
        units.append(Unit(name, number, tensors, align, full, full // at.shard))

    if first or (model.tied and last):
        add("embedding", 1, embedding_specs(model))
    if first and model.arch == "gpt2":
        add("positions", 1, position_specs(model))
    add("blocks", layers_of(config, spot.stage), _block(model))
    if last:
        add("head", 1, head_specs(model))
    if model.tied and first and last and config.run.exact:  # the gradients of its two uses are kept apart
        add("output", 1, embedding_specs(model))
    return units


def n_parameters(model: ModelConfig) -> int:
    """Every one once."""
    ends = [*embedding_specs(model), *head_specs(model)]
    ends += position_specs(model) if model.arch == "gpt2" else []
    return sum(spec.size for spec in ends) + model.layers * sum(spec.size for spec in _block(model))


@functools.lru_cache(maxsize=64)
def _block(model: ModelConfig) -> tuple[ParamSpec, ...]:
    return tuple(block_specs(model, 0))


@functools.lru_cache(maxsize=1024)
def _tensors(specs: tuple[ParamSpec, ...], rank: int, size: int) -> tuple[tuple[ParamSpec, int], ...]:
    def kind(spec: ParamSpec) -> int:
        return 0 if spec.tp_dim is None else 1 if spec.tp_replicas(size) > 1 else 2

    ordered = sorted(specs, key=lambda spec: (spec.decays, kind(spec)))
    return tuple((s, math.prod(cut.stop - cut.start for cut in s.tp_slice(rank, size))) for s in ordered)


def _up(n: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `n`."""
    return -(-n // unit) * unit
