"""What rank 0 sends in a step and holds: predicted from the configuration beside measured by the run. And of
every rank whether both are equal, where a trace tells.
"""

from collections.abc import Sequence
from typing import NamedTuple

from minitrain.config import Config
from minitrain.observe.traffic import Place, places, sent_bytes, traffic
from minitrain.plan.activations import activations
from minitrain.plan.buffers import buffers
from minitrain.plan.held import Spot
from minitrain.plan.memory import persistent
from minitrain.report.run_files import Step
from minitrain.report.trace import Trace, of_step, step_shown

Name = tuple[str, ...]


class Pair(NamedTuple):
    """Bytes of one kind."""

    name: Name
    predicted: int
    measured: int

    @property
    def exact(self) -> bool:
        return self.predicted == self.measured


def bytes_sent(config: Config, step: Step) -> list[Pair]:
    """By axis and verb, on rank 0 in this step."""
    return _pairs(_flat(sent_bytes(traffic(config, places(config)[0]))), _flat(step.comm_bytes))


def exact_steps(config: Config, steps: Sequence[Step]) -> int:
    """In how many of them rank 0 sent what is predicted, by axis and verb."""
    predicted = sent_bytes(traffic(config, places(config)[0]))
    return sum(step.comm_bytes == predicted for step in steps)


def bytes_sent_by_ranks(config: Config, trace: Trace) -> dict[int, bool]:
    """Of every rank, whether in the step that is shown it sent what is predicted, by axis and verb."""
    measured: dict[int, dict[Name, int]] = {rank: {} for rank in range(len(places(config)))}
    for call in of_step(trace, step_shown(trace)).calls:
        if call.sent_bytes:
            name, of_rank = (call.axis, call.verb), measured[call.rank]
            of_rank[name] = of_rank.get(name, 0) + call.sent_bytes
    predicted = [_flat(sent_bytes(traffic(config, place))) for place in places(config)]
    return {rank: predicted[rank] == sent for rank, sent in measured.items()}


def bytes_held(config: Config, step: Step, gpu: bool) -> list[Pair]:
    """By class, on rank 0. Of activations and buffers the most at once."""
    return _pairs(_held(config, Place(0, 0, 0, 0), gpu), _named(step.memory_bytes))


def bytes_held_by_ranks(config: Config, memory: dict[int, dict[str, int]], gpu: bool) -> dict[int, bool]:
    """Of every rank, whether what it held at the end of a trace is what is predicted, by class."""
    of_rank = places(config)
    return {rank: _held(config, of_rank[rank], gpu) == _named(held) for rank, held in sorted(memory.items())}


def _held(config: Config, place: Place, gpu: bool) -> dict[Name, int]:
    spot = Spot(place.pp, place.tp, place.shard)
    more = {"activations": activations(config, spot, gpu), "buffers": buffers(config, spot)}
    return _named(persistent(config, spot)._asdict() | more)


def _pairs(predicted: dict[Name, int], measured: dict[Name, int]) -> list[Pair]:
    names = dict.fromkeys((*predicted, *measured))
    return [Pair(name, predicted.get(name, 0), measured.get(name, 0)) for name in names]


def _flat(tree: dict[str, dict[str, int]]) -> dict[Name, int]:
    return {(axis, verb): n for axis, verbs in tree.items() for verb, n in verbs.items()}


def _named(classes: dict[str, int]) -> dict[Name, int]:
    return {(name,): n for name, n in classes.items()}
