"""What the backward needs is kept, or computed again: `parallel.recompute`, none, selective and full.

The stage is that of training (parallel/stage.py), its blocks cut over the ranks. What it keeps is read off
the arrays that it saves, what is alive at a moment off the arrays that its operations have made.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.device import is_array
from minitrain.arrays.owners import owner
from minitrain.arrays.types import Array
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.config import Config, ModelConfig, ParallelConfig, TrainConfig
from minitrain.parallel.stage import Stage, StageSaved
from minitrain.plan.activations import kept_of_a_block, made_by_a_block
from minitrain.resolve import resolve
from minitrain.study.lectures.small import random_batch, random_weights
from minitrain.study.listening import Products, listening
from minitrain.study.living import Living, Visit
from minitrain.study.page import Counted, Page, gather

MODES = ("none", "selective", "full")
LAYERS = 4
COLUMNS = 50  # of a bar


def configured(n: int, mode: str, sequence: bool = False) -> Config:
    """A model of n heads, cut over n ranks, and one sequence of 2 n positions."""
    model = ModelConfig(layers=LAYERS, width=2 * n, heads=n, ffn=4 * n, vocab=4 * n, seq_len=2 * n)
    parallel = ParallelConfig(dp=1, pp=1, tp=n, sequence=sequence, recompute=mode)  # type: ignore[arg-type]
    asked = Config(
        model=model,
        parallel=parallel,
        train=TrainConfig(global_batch=1, micro_batch=1),
        precision="fp64",
    )
    return resolve(asked, {}, world_size=n).config


def make_stage(comm: Comm, config: Config) -> Stage:
    return Stage(config, make_grid(comm, config), random_weights)


def saved_by(stage: Stage, config: Config) -> StageSaved:
    """From the forward of a micro-batch to its backward."""
    return stage.forward(random_batch(config, 0).ids_MN[0])[1]


def arrays_of(kept: Any, name: str = "") -> dict[str, Array]:
    """What is kept of a block, by the names that model/block.py has for it. Views of one memory are there
    once, by the last of their names.
    """
    found: dict[int, tuple[str, Array]] = {}

    def visit(node: Any, name: str) -> None:
        if is_array(node):
            found[id(owner(node))] = name, node
        elif isinstance(node, tuple | list):
            operands = ["q_BTHK", "k_BTGK", "v_BTGK"]  # all that selective recomputation keeps of `core`
            numbered = [str(i) for i in range(len(node))] if isinstance(node, list) else operands
            for field, child in zip(getattr(node, "_fields", numbered), node, strict=True):
                visit(child, f"{name}.{field}" if name else field)

    visit(kept, name)
    return dict(found.values())


def there_and_back(stage: Stage, config: Config) -> list[Visit]:
    """One micro-batch through all blocks, to the loss, and back."""
    living, batch = Living(stage.tp.comm), random_batch(config, 0)
    for number, unit in enumerate(stage.blocks):
        living.watch(unit, number, iter(("forward", "backward")))
    with listening(stage.ops, living):
        x_SD, saved = stage.forward(batch.ids_MN[0])
        with living.visit("loss"):
            dx_SD = stage.loss(x_SD, batch.targets_MN[0], 1 / batch.n_tokens)[1]
        del x_SD
        stage.backward(dx_SD, saved)
    return living.visits


class Cost(NamedTuple):
    """Of the blocks' forward and backward."""

    of_matrices: float  # operations a token and matrix element
    of_attention: float  # operations a score and channel
    all_reduces: int
    sent: int  # bytes
    gradients: Array


def cost(comm: Comm, config: Config) -> Cost:
    """Of one micro-batch, on this rank, the embedding's all-reduce included."""
    counted, products = Counted(comm), Products()
    stage, batch = make_stage(counted.comm, config), random_batch(config, 0)
    with listening(stage.ops, products):
        x_SD, saved = stage.forward(batch.ids_MN[0])
        stage.backward(np.ones_like(x_SD), saved)
    all_reduces = [event.verb for event in counted.verbs].count("all_reduce")
    model, N = config.model, batch.ids_MN[0].size
    elements = sum(
        part.size
        for unit in stage.blocks
        for part in unit.layout.views(unit.master).values()
        if part.ndim == 2
    )
    scores = LAYERS * model.seq_len**2 * model.width // comm.size
    gradients = np.concatenate([unit.grad_shard for unit in stage.blocks])
    return Cost(
        products.of_matrices / (N * elements),
        products.of_attention / scores,
        all_reduces,
        counted.take(),
        gradients,
    )


def study_recomputation(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "Recomputation",
        "The backward of a block needs what its forward has found. It can be kept until then, or computed "
        "once more when it is needed: all of it (full: of each block the input is kept), or what takes most "
        "memory and little time (selective: the scores of attention). It saves memory and costs operations; "
        "the gradients are the same to the last bit.",
    )
    page.say(
        f"A model of {LAYERS} blocks as it trains, of width {2 * n}, its {n} heads and its MLPs cut over {n} "
        f"ranks. One sequence of {2 * n} positions; fp64, 8 bytes a number."
    )
    configs = {mode: configured(n, mode) for mode in MODES}
    what_is_kept(page, comm, configs)
    over_ranks(page, comm)
    hills(page, comm, configs)

    page.step("what it costs")
    costs = {mode: cost(comm, config) for mode, config in configs.items()}
    rows = [["", "a token and matrix element", "a score and channel", "all-reduces over tp"]]
    for mode, c in costs.items():
        rows.append([mode, f"{c.of_matrices:g}", f"{c.of_attention:g}", str(c.all_reduces)])
    page.table(rows)
    page.say(
        "Operations, multiplications and additions, counted in every product of this rank's blocks, there "
        "and back; and the calls that wait for others. A forward takes 2 and a backward 4 of each matrix "
        "element, so one more forward makes 8 of 6: 4/3 of the time, where products take it all. Of "
        "attention, 4 forward and 8 backward, selective recomputation does the forward again."
    )
    none, selective, full = (costs[mode] for mode in MODES)
    page.check(
        "6 operations a token and matrix element, and 8 under full recomputation",
        [c.of_matrices for c in costs.values()] == [6, 6, 8],
    )
    page.check(
        "12 a score and channel, and 16 where it is computed again",
        [c.of_attention for c in costs.values()] == [12, 16, 16],
    )
    page.check(
        "4 all-reduces a block, and 6 under full recomputation; 1 more for the embedding",
        [c.all_reduces for c in costs.values()] == [4 * LAYERS + 1, 4 * LAYERS + 1, 6 * LAYERS + 1],
    )
    rows_bytes = 8 * (2 * n) * (2 * n)
    for c, what, calls in ((none, "with all that is kept", 4), (full, "under full recomputation", 6)):
        value = (calls * LAYERS + 1) * ring_bytes("all_reduce", rows_bytes, n)
        page.sent(what, c.sent, f"({calls} x {LAYERS} + 1) x 2(n - 1)/n of {rows_bytes}", value)

    page.step("the same gradients")
    rows = [["", "two gradients of rank 0, all bits of them"]]
    rows += [[mode, "  ".join(float(value).hex() for value in c.gradients[:2])] for mode, c in costs.items()]
    page.table(rows, left=2)
    page.check(
        "selective recomputation gives the same bits in every gradient",
        np.array_equal(selective.gradients, none.gradients),
    )
    page.check("and so does full recomputation", np.array_equal(full.gradients, none.gradients))

    page.step("where the common statement is loose")
    made, x = made_by_a_block(configs["none"], rank, gpu=False), rows_bytes
    page.loosely(
        "recomputation offloads activations",
        "Recomputation drops them and computes them once more: operations, and under tensor parallelism "
        "their all-reduces, but nothing is moved away. Offload moves them to another memory and back, here "
        f"{made} bytes of a block each way: transfers, and no arithmetic. This project has no offload.",
    )
    page.loosely(
        "full recomputation makes the memory of activations independent of depth",
        f"It keeps an input for every block: here {LAYERS} x {x} bytes, and {made} of one block at a time. "
        "That grows with depth too, only slowly. Chen et al. (2016) keep the input of every sqrt(L)-th of L "
        "blocks, and compute sqrt(L) blocks again at a time: both then grow with sqrt(L).",
    )


def what_is_kept(page: Page, comm: Comm, configs: dict[str, Config]) -> None:
    """Of one block, array by array."""
    page.step("what a block keeps")
    kept = {}
    for mode, config in configs.items():
        of_block = saved_by(make_stage(comm, config), config).blocks[1]
        kept[mode] = arrays_of(of_block, "" if isinstance(of_block, tuple) else "x_SD")
    shapes = {name: array.shape for arrays in kept.values() for name, array in arrays.items()}
    rows = [["", "shape", *MODES]]
    for name, shape in sorted(shapes.items(), key=lambda item: item[0] != "x_SD"):
        cells = [str(owner(kept[mode][name]).nbytes) if name in kept[mode] else "-" for mode in MODES]
        rows.append([name, " x ".join(map(str, shape)), *cells])
    counted = {mode: sum(owner(array).nbytes for array in arrays.values()) for mode, arrays in kept.items()}
    rows.append(["all of a block", "", *(str(n) for n in counted.values())])
    page.table(rows, left=2)
    page.say(
        "Bytes of rank 0, by the names of model/block.py; x_SD is the block's input. T positions see T keys "
        "in the scores (exps): they grow with the square of the sequence, all else with its length."
    )
    for mode, config in configs.items():
        formula = kept_of_a_block(config, comm.rank, gpu=False)
        page.check(
            f"{mode}: {counted[mode]} bytes on every rank, counted; the form of plan/activations.py gives "
            f"{formula}",
            counted[mode] == formula,
        )


def over_ranks(page: Page, comm: Comm) -> None:
    """What tensor parallelism divides."""
    n = comm.size
    page.step("and over ranks")
    rows, alone = [["", *MODES]], comm.split(comm.rank, "alone")
    whole: dict[str, int] = {}
    for name, where, size, sequence in (
        ("one process", alone, 1, False),
        (f"{n} ranks, all-reduce form", comm, n, False),
        (f"{n} ranks, sequence form", comm, n, True),
    ):
        cells = []
        for mode in MODES:
            config = configured(n, mode, sequence)
            config = replace(config, parallel=replace(config.parallel, tp=size))
            arrays = arrays_of(saved_by(make_stage(where, config), config).blocks[1], "x_SD")
            counted = sum(owner(array).nbytes for array in arrays.values())
            formula = kept_of_a_block(config, where.rank, gpu=False)
            page.require(f"{name}, {mode}: bytes are as the formula has it", counted == formula)
            whole.setdefault(mode, counted)
            cells.append(f"{counted} ({counted / whole[mode]:.0%})")
            if sequence:
                page.require(f"{mode}: in the sequence form 1/n of all", counted * n == whole[mode])
        rows.append([name, *cells])
    page.table(rows)
    page.say(
        "Bytes of a block on a rank, counted and equal to the formula, and which part of one process's that "
        "is. What lies between f and g is cut. What lies outside, the norms and the input, every rank has "
        "whole in the all-reduce form; sequence parallelism cuts that too, and keeps 1/n of all (Korthikanti "
        "et al. 2022)."
    )


def hills(page: Page, comm: Comm, configs: dict[str, Config]) -> None:
    """Bytes alive, visit by visit."""
    visits = {mode: there_and_back(make_stage(comm, config), config) for mode, config in configs.items()}
    highest = max(visit.most for of_mode in visits.values() for visit in of_mode)
    for mode, of_mode in visits.items():
        page.step(f"there and back: {mode}")
        rows = [["", "", "before", "at most"]]
        for what, before, most in of_mode:
            long, longest = (round(n * COLUMNS / highest) for n in (before, most))
            rows.append([what, "#" * long + "-" * (longest - long), str(before), str(most)])
        page.table(rows, left=2)
        if mode == MODES[0]:
            page.say(
                "Bytes of all arrays that operations have made and somebody holds: before a block's turn "
                "(#), and at most during it (-), looked at after every operation."
            )
        kept, x = kept_of_a_block(configs[mode], comm.rank, gpu=False), 8 * (2 * comm.size) ** 2
        forward = [visit.before for visit in of_mode[: LAYERS + 1]]
        page.check(
            f"before block i of the forward i x {kept} bytes are kept, and there is its input of {x}",
            forward == [i * kept + x for i in range(LAYERS + 1)],
        )
        back = [visit.before for visit in reversed(of_mode[LAYERS + 1 :])]
        page.check(
            f"before block i on the way back (i + 1) x {kept} are, and one or two gradients of {x}",
            all((i + 1) * kept + x <= before <= (i + 1) * kept + 2 * x for i, before in enumerate(back)),
        )
        page.require("every rank holds as much", len(set(gather(comm, of_mode))) == 1)
    peaks = {mode: max(visit.most for visit in of_mode) for mode, of_mode in visits.items()}
    page.say(
        f"The highest of none is {peaks['none']} bytes, of selective {peaks['selective']}, of full "
        f"{peaks['full']}."
    )
    block = kept_of_a_block(configs["none"], comm.rank, gpu=False)
    numbers = (*range(LAYERS), 0, *reversed(range(LAYERS)))  # of the blocks; the loss is compared apart
    page.check(
        "at most, block i takes under full recomputation what it takes under none, with i inputs in place of "
        "i blocks: one whole block is there at a time",
        all(
            full.most == none.most - i * (block - x)
            for i, none, full in zip(numbers, visits["none"], visits["full"], strict=True)
            if none.what != "loss"
        ),
    )
