"""All legal layouts of a number of ranks, those that fit first and of these the fastest.

What the user has named stays as it is. Free are otherwise tp, pp (and dp with them), the stage of ZeRO,
sequence parallelism, recomputation (of scores where flash attention does not leave them out anyway), and the
sequences of a micro-batch, as powers of two. The schedule is not searched: by this model both take the same
time, and 1F1B holds less.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal, NamedTuple

from minitrain.config import Config
from minitrain.drill_rules import DRILL_RULES
from minitrain.plan.activations import keeps_scores
from minitrain.plan.machines import Machine
from minitrain.plan.prediction import holdings
from minitrain.plan.step_time import step_time
from minitrain.resolve import divisors, with_layout
from minitrain.rules import LAYOUT_RULES, TRAIN_RULES, is_legal

MICRO_BATCHES = (1, 2, 4, 8, 16)
OF_A_LAYOUT = (*LAYOUT_RULES, *TRAIN_RULES, *DRILL_RULES)  # the model is that of the configuration, and legal
Zero = Literal[0, 1, 2, 3]
Recompute = Literal["none", "selective", "full"]


class Found(NamedTuple):
    config: Config
    bytes: int  # of the rank that holds most
    seconds: float  # of a step
    tokens_per_second: float
    mfu: float


class Search(NamedTuple):
    legal: int  # layouts that were looked at
    fitting: list[Found]  # the fastest first
    smallest: Found | None  # of all: where nothing fits, what comes nearest


def search(config: Config, given: Collection[str], world: int, machine: Machine) -> Search:
    """`given`: the fields that stay."""
    found, smallest, legal = [], None, 0
    for candidate in candidates(config, given, world):
        legal += 1
        most = max(holding.most for holding in holdings(candidate, gpu=True))
        if most <= machine.memory_gb * 1e9 or smallest is None or most < smallest.bytes:
            time = step_time(candidate, machine)
            one = Found(candidate, most, time.seconds, time.tokens_per_second, time.mfu)
            if most <= machine.memory_gb * 1e9:
                found.append(one)
            if smallest is None or most < smallest.bytes:
                smallest = one
    return Search(legal, sorted(found, key=lambda one: (one.seconds, one.bytes)), smallest)


def candidates(config: Config, given: Collection[str], world: int) -> Iterator[Config]:
    """The legal ones, each once."""
    p = config.parallel

    def free(name: str, choices: Collection[int], value: int | None) -> Collection[int]:
        return choices if name not in given or value is None else (value,)

    zeros: Sequence[Zero] = (p.zero,) if "parallel.zero" in given else (0, 1, 2, 3)
    sequences = (p.sequence,) if "parallel.sequence" in given else (False, True)
    recomputes: Sequence[Recompute] = ("none", "full")
    if "parallel.recompute" in given:
        recomputes = (p.recompute,)
    elif keeps_scores(config):
        recomputes = ("none", "selective", "full")
    batches = free("train.micro_batch", MICRO_BATCHES, config.train.micro_batch)
    shard = p.shard if "parallel.shard" in given else None
    for dp, tp in product(
        free("parallel.dp", divisors(world), p.dp), free("parallel.tp", divisors(world), p.tp)
    ):
        pp = world // (dp * tp)
        if dp * tp * pp != world or pp not in free("parallel.pp", (pp,), p.pp):
            continue
        for micro, zero, sequence, recompute in product(
            batches, zeros if dp > 1 else zeros[:1], sequences if tp > 1 else sequences[:1], recomputes
        ):
            parallel = replace(p, zero=zero, shard=shard, sequence=sequence, recompute=recompute)
            train = replace(config.train, micro_batch=micro)
            one = with_layout(replace(config, parallel=parallel, train=train), dp, tp, pp)
            if is_legal(OF_A_LAYOUT, one, world, ()):
                yield one
