"""Everything that is predicted of one configuration, gathered for whoever shows it."""

from typing import NamedTuple

from minitrain.config import Config
from minitrain.observe.traffic import Place, Row, traffic
from minitrain.plan.activations import in_flight, kept_of_a_block, made_by_a_block
from minitrain.plan.bubble import SCHEDULES, Bubble, bubble
from minitrain.plan.buffers import buffers
from minitrain.plan.flops import Convention, conventions
from minitrain.plan.held import (
    SIZES,
    Spot,
    StageKind,
    layers_of,
    layout_of,
    n_parameters,
    stage_kinds,
    units_of,
)
from minitrain.plan.machines import Machine
from minitrain.plan.memory import Persistent, heaviest, persistent
from minitrain.plan.step_time import StepTime, ids_held, step_time


class Holding(NamedTuple):
    """What a rank holds on one kind of stage: of these ranks, one that holds most. Bytes."""

    kind: StageKind
    layers: int
    elements: int  # of parameters, without padding
    persistent: Persistent
    kept: int  # activations of a micro-batch
    in_flight: int  # micro-batches
    buffers: int
    logits: int  # and, in 16 bits, their gradient: the largest of what comes and goes within a micro-batch
    again: int  # what recomputation makes of a block in its backward, which comes and goes too

    @property
    def activations(self) -> int:
        return self.kept * self.in_flight

    @property
    def stays(self) -> int:
        """What metrics.jsonl has under memory_bytes."""
        return self.persistent.total + self.activations + self.buffers

    @property
    def most(self) -> int:
        """At once."""
        return self.stays + max(self.logits, self.again)


class Prediction(NamedTuple):
    """Of a configuration, and of a machine if one was named."""

    config: Config
    machine: Machine | None
    gpu: bool  # whether activations are what a GPU keeps
    parameters: int
    holdings: list[Holding]
    rows: list[list[Row]]  # of the same ranks: what each sends in a step
    flops: list[Convention]
    bubbles: list[Bubble]
    time: StepTime | None

    @property
    def most(self) -> int:
        """Bytes of the rank that holds most."""
        return max(holding.most for holding in self.holdings)

    @property
    def fits(self) -> bool | None:
        return None if self.machine is None else self.most <= self.machine.memory_gb * 1e9


def holdings(config: Config, gpu: bool) -> list[Holding]:
    """Of every kind of stage."""
    return [_holding(config, kind, heaviest(config, kind.first), gpu) for kind in stage_kinds(config)]


def _holding(config: Config, kind: StageKind, spot: Spot, gpu: bool) -> Holding:
    at, sizes, layers = layout_of(config), SIZES[config.precision], layers_of(config, kind.first)
    logits = at.tokens * ids_held(config, spot.tp) if kind.first == at.pp - 1 else 0
    units, kept = units_of(config, spot), kept_of_a_block(config, spot.tp, gpu)
    made = made_by_a_block(config, spot.tp, gpu)
    again = {"none": 0, "selective": made - kept, "full": made}[config.parallel.recompute]
    return Holding(
        kind=kind,
        layers=layers,
        elements=sum(u.number * sum(n for _, n in u.tensors) for u in units),
        persistent=persistent(config, spot),
        kept=layers * kept,
        in_flight=in_flight(config, kind.first),
        buffers=buffers(config, spot),
        logits=logits * (sizes.wide + (sizes.param if sizes.param < sizes.wide else 0)),
        again=again,
    )


def predict(config: Config, machine: Machine | None) -> Prediction:
    """Of a resolved configuration."""
    at = layout_of(config)
    gpu = machine is not None or config.backend == "cupy"
    held = holdings(config, gpu)
    return Prediction(
        config=config,
        machine=machine,
        gpu=gpu,
        parameters=n_parameters(config.model),
        holdings=held,
        rows=[traffic(config, Place(0, 0, h.kind.first, at.tp - 1)) for h in held],
        flops=conventions(config.model),
        bubbles=[bubble(name, at.pp, at.micro) for name in SCHEDULES],
        time=step_time(config, machine) if machine else None,
    )
