"""Data, pipeline and tensor parallelism at once: one tiny model, trained a step in every layout of the ranks.

Symbols: L layers, m micro-batches of a rank.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import name_ranks
from minitrain.comm.traced import ByteCounter, Event, traced
from minitrain.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from minitrain.observe.traffic import Place, places, sent_bytes, traffic
from minitrain.plan.activations import activations
from minitrain.plan.buffers import buffers
from minitrain.plan.held import Spot, layout_of
from minitrain.plan.memory import persistent
from minitrain.resolve import divisors, resolve
from minitrain.step import train_step
from minitrain.study.lectures.small import random_batch, random_weights
from minitrain.study.listening import Products, listening
from minitrain.study.page import Page, close, gather

AXES = {"tp": ("tp",), "pp": ("pp",), "data": ("replica", "shard", "dp"), "world": ("world",)}
"""Groups of ranks (comm/grid.py) by what they are for."""


def configured(ranks: int, n: int, **layout: int) -> Config:
    """A model that any layout of n ranks can cut, on `ranks` of them: n layers, n heads, n sequences."""
    model = ModelConfig(layers=n, width=2 * n, heads=n, ffn=3 * n, vocab=4 * n, seq_len=4)
    train = TrainConfig(global_batch=n, micro_batch=1)
    asked = Config(
        model=model,
        parallel=ParallelConfig(**layout),  # type: ignore[arg-type]
        train=train,
        optim=OptimConfig(name="adamw"),
        precision="fp64",
    )
    return resolve(asked, {}, world_size=ranks).config


def layouts(n: int) -> Iterator[Config]:
    """All of dp x pp x tp = n, those of one axis among them; and data parallelism alone with ZeRO 1."""
    yield configured(n, n, dp=n, pp=1, tp=1)
    yield configured(n, n, dp=n, pp=1, tp=1, zero=1)
    for dp in divisors(n)[-2::-1]:
        for pp in reversed(divisors(n // dp)):
            yield configured(n, n, dp=dp, pp=pp, tp=n // dp // pp)


class Step(NamedTuple):
    """What came of a step on one rank."""

    loss: float
    norm: float
    products: int  # operations
    calls: dict[str, int]  # that send, by axis
    sent: dict[str, dict[str, int]]  # bytes by axis and verb
    held: dict[str, int]  # bytes by class


Steps = list[tuple[Config, Step]]


def take_step(comm: Comm, config: Config) -> Step:
    """The first one of a training run."""
    events: list[Event] = []
    grid = make_grid(traced(comm, events.append), config)
    trainer = make_trainer(config, grid, random_weights)
    events.clear()
    products, counter = Products(), ByteCounter()
    with listening(trainer.stage.ops, products):
        result = train_step(trainer, random_batch(config, grid.dp.rank), 1e-3, 1)
    for event in events:
        counter(event)
    calls = {name: sum(event.axis in axes for event in events) for name, axes in AXES.items()}
    held = trainer.meter.bytes(trainer.stage)
    done = products.of_matrices + products.of_attention
    return Step(result.loss, result.grad_norm, done, calls, counter.take(), held)


def predicted(config: Config, place: Place) -> dict[str, int]:
    """Bytes held, as `plan` has them."""
    spot = Spot(place.pp, place.tp, place.shard)
    return {
        **persistent(config, spot)._asdict(),
        "activations": activations(config, spot),
        "buffers": buffers(config, spot),
    }


def study_combinations(page: Page, comm: Comm) -> None:
    n = comm.size
    page.claim(
        "All three at once",
        "Ranks are a grid. Data parallelism cuts the batch, the pipeline the layers, tensor parallelism "
        "every matrix; a rank has one place on each axis, and on each a group of ranks with which it talks "
        "of that cut alone. Any product of the three that makes up the ranks takes the same step.",
    )
    page.say(
        f"One tiny model with AdamW in fp64: {n} layers of {n} heads, {n} sequences a step, one in a "
        "micro-batch."
    )
    the_grid(page, comm)
    steps = [(config, take_step(comm, config)) for config in layouts(n)]
    what_is_sent(page, comm, steps)
    what_is_held(page, comm, steps)
    why_in_this_order(page, comm, steps)

    page.step("where the common statement is loose")
    sent = {name_of(config): sum(of_ranks(comm, total(step.sent))) for config, step in steps}
    least, greatest = min(sent, key=lambda name: sent[name]), max(sent, key=lambda name: sent[name])
    page.loosely(
        "more parallelism is faster",
        f"All ranks together do the same products in each of these layouts, but they send from {sent[least]} "
        f"bytes ({least}) to {sent[greatest]} ({greatest}), and in a pipeline they wait, which one process "
        "does not: it is faster only as far as sending and waiting take less than dividing the products "
        "saves.",
    )
    page.loosely(
        "on n ranks each needs 1/n of the memory",
        "The pipeline and tensor parallelism divide parameters, gradients and optimizer state, data "
        "parallelism none of them unless ZeRO does. Activations are divided by tensor parallelism, within "
        "its regions: a stage of a pipeline has fewer layers, but of as many more micro-batches.",
    )


def the_grid(page: Page, comm: Comm) -> None:
    """Of the layout with as many axes at work as these ranks can have."""
    config = configured(comm.size, comm.size)
    grid, at = make_grid(comm, config), layout_of(config)
    page.step(f"the grid: {name_of(config)}")
    groups = {"tp": grid.tp, "pp": grid.pp, "data": grid.dp}
    page.ranks(
        place=f"dp {grid.dp.rank}, pp {grid.pp.rank}, tp {grid.tp.rank}",
        **{f"{name}_group": name_ranks(group.members) for name, group in groups.items()},
    )
    page.say(
        "Ranks are numbered with tp fastest, then pp, then dp (comm/grid.py): rank = (dp place x pp + pp "
        "place) x tp + tp place. What lies side by side in this order is near in the machine, where a "
        "launcher fills one host after another."
    )
    here = (grid.dp.rank * at.pp + grid.pp.rank) * at.tp + grid.tp.rank
    page.check("every rank is where the formula says", here == comm.rank)
    steps = {"tp": 1, "pp": at.tp, "data": at.tp * at.pp}
    page.check(
        f"the ranks of a tp group are 1 apart, those of a pp group {at.tp}, those of a data group "
        f"{at.tp * at.pp}",
        all(
            group.members
            == tuple(comm.members[comm.rank + (i - group.rank) * steps[name]] for i in range(group.size))
            for name, group in groups.items()
        ),
    )


def what_is_sent(page: Page, comm: Comm, steps: Steps) -> None:
    """And whether it is the same step."""
    page.step("the same step in every layout, and what it sends")
    one = take_step(comm.split(comm.rank, "alone"), configured(1, comm.size, dp=1, pp=1, tp=1))
    rows = [[*COLUMNS, "loss", "gradient norm", "tp", "pp", "data", "world"]]
    for config, step in steps:
        most = [max(of_ranks(comm, over(step, name))) for name in AXES]
        rows.append([*cells(config), f"{step.loss:.12f}", f"{step.norm:.11f}", *map(str, most)])
    page.table(rows, left=0)
    page.say(
        "Bytes that a rank sends in the step within each of its groups, of all ranks the most, counted call "
        "by call as in a ring. In the group of all ranks goes a number: whether the step counts."
    )
    page.check(
        "in every layout loss and gradient norm are, but for rounding, those of one process, "
        f"{one.loss:.12f} and {one.norm:.11f}",
        all(close(pair(step), pair(one)) for _, step in steps),
    )
    page.check(
        f"all ranks together have done {one.products} operations in products in each, and one process too",
        all(sum(of_ranks(comm, step.products)) == one.products for _, step in steps),
    )
    page.check(
        "every rank has sent, by axis and verb, the bytes of the closed form in observe/traffic.py",
        all(step.sent == sent_bytes(traffic(config, places(config)[comm.rank])) for config, step in steps),
    )


def what_is_held(page: Page, comm: Comm, steps: Steps) -> None:
    page.step("what a rank keeps")
    rows = [[*COLUMNS, "parameters", "gradients", "optimizer state", "activations"]]
    for config, step in steps:
        held = step.held
        classes = held["parameters"], held["gradients"], held["master"] + held["moments"], held["activations"]
        rows.append([*cells(config), *(str(max(of_ranks(comm, n_bytes))) for n_bytes in classes)])
    page.table(rows, left=0)
    page.say(
        "Bytes, of all ranks the most. m is the number of a rank's micro-batches; a stage of the pipeline "
        "keeps the activations of at most as many as there are stages from it to the last (1F1B)."
    )
    cut = [
        max(of_ranks(comm, step.held["activations"])) for config, step in steps if layout_of(config).tp == 1
    ]
    page.check(
        f"without tensor parallelism it is {cut[0]} bytes of activations in every layout", len({*cut}) == 1
    )
    page.check(
        "every rank keeps, by class, the bytes of the forms in plan/memory.py and plan/activations.py",
        all(step.held == predicted(config, places(config)[comm.rank]) for config, step in steps),
    )


def why_in_this_order(page: Page, comm: Comm, steps: Steps) -> None:
    """How often a rank calls, where one axis has all ranks."""
    n = comm.size
    alone = {name_of(config): step for config, step in steps}
    counted = {
        name: max(of_ranks(comm, alone[f"{axis} {n}"].calls[name]))
        for name, axis in (("tp", "tp"), ("pp", "pp"), ("data", "dp"))
    }
    L, m = n, n
    ways = "2 m" if n > 2 else "m"  # of a stage between two others
    forms = {"tp": m * (4 * L + 4) + 1, "pp": (2 if n > 2 else 1) * m + 2, "data": L + 3}
    page.step("which axis is innermost, and why")
    page.table(
        [
            ["", "divides", "sends", "how often", "calls"],
            ["tp", "every matrix", "sums of activations", "4 a block and micro-batch", str(counted["tp"])],
            [
                "pp",
                "layers",
                "activations, and gradients back",
                "1 each way a micro-batch",
                str(counted["pp"]),
            ],
            ["dp", "the batch", "gradients", "1 a step and block", str(counted["data"])],
        ],
        left=4,
    )
    page.say(
        f"Calls of a rank in a step where the axis has all {n} ranks, with L = {L} layers and m = {m} "
        f"micro-batches (of data parallelism 1). Tensor parallelism calls most, and the next product waits "
        "for each of its calls: so its group gets the nearest ranks, with the fastest wires between them. A "
        "pipeline sends seldom, to one neighbour, and while it does another micro-batch can be at work. "
        "Data parallelism calls at the end of the step alone: it can be outermost. (Tensor parallelism "
        "within a server, the pipeline across servers: Narayanan et al. 2021, 3.2.)"
    )
    page.check(
        f"over tp m (4 L + 4) + 1 = {forms['tp']} calls: embedding, head and loss make 4 a micro-batch, the "
        "norm 1",
        counted["tp"] == forms["tp"],
    )
    page.check(f"over pp {ways} + 2 = {forms['pp']}: norm and loss make 2", counted["pp"] == forms["pp"])
    page.check(
        f"for data L + 3 = {forms['data']}: one for each block, embedding and head, and the loss",
        counted["data"] == forms["data"],
    )


COLUMNS = ("dp", "pp", "tp", "ZeRO", "m")


def cells(config: Config) -> list[str]:
    at = layout_of(config)
    return [str(number) for number in (at.dp, at.pp, at.tp, at.zero, at.micro)]


def name_of(config: Config) -> str:
    """The axes at work."""
    at = layout_of(config)
    sizes = {"dp": at.dp, "pp": at.pp, "tp": at.tp}
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    return axes + (f", ZeRO {at.zero}" if at.zero else "")


def pair(step: Step) -> Array:
    return np.array([step.loss, step.norm])


def over(step: Step, name: str) -> int:
    """Bytes sent by this rank in the groups of one kind."""
    return total({axis: step.sent.get(axis, {}) for axis in AXES[name]})


def total(sent: dict[str, dict[str, int]]) -> int:
    return sum(n_bytes for verbs in sent.values() for n_bytes in verbs.values())


def of_ranks(comm: Comm, mine: int) -> list[int]:
    """Everybody's."""
    return [int(json.loads(text)) for text in gather(comm, mine)]
