"""Studies: a topic of the textbook shown by this project's own code, in numbers and figures.

Some run in one process and draw figures, for which they need matplotlib, which nothing else does
(`figures.py`). The lectures (`lectures/`) run on several ranks and show what these hold, step by step.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from minitrain.comm.interface import World


class Topic(NamedTuple):
    """`run(world, **options)` shows it. `options` are its own of --out, --steps, --ranks and --all, with
    their defaults. `sizes` are the numbers of ranks on which it can be shown.
    """

    summary: str
    run: Callable[..., None]
    options: dict[str, Any]
    sizes: tuple[int, ...] = (1,)


def _formats(world: World) -> None:
    from minitrain.study.formats import study_formats

    study_formats()


def _optimizers(world: World, out: str) -> None:
    from minitrain.study.optimizers import study_optimizers

    study_optimizers(out)


def _precision(world: World, out: str, steps: int) -> None:
    from minitrain.study.precision import study_precision

    study_precision(out, steps)


EVERY_SIZE = tuple(range(2, 9))  # the tables of more ranks are too wide to be read
POWERS_OF_TWO = (2, 4, 8)


def _lecture(file: str, function: str, summary: str, sizes: tuple[int, ...] = EVERY_SIZE) -> Topic:
    """That of `function` in a file of lectures/, which is imported when it is wanted."""

    def run(world: World, ranks: int, all: bool) -> None:
        from minitrain.study.lecture import perform

        lecture = getattr(import_module(f"minitrain.study.lectures.{file}"), function)
        perform(lecture, world, ranks, all)

    return Topic(summary, run, {"ranks": 4, "all": False}, sizes)


PARTS: dict[str, dict[str, Topic]] = {  # in the order in which the subject is taught
    "training in one process": {
        "optimizers": Topic(
            "paths of optimizers over a bowl, a bump and a saddle",
            _optimizers,
            {"out": "study-optimizers"},
        ),
        "formats": Topic("what floats of 64 to 8 bits can hold", _formats, {}),
        "precision": Topic(
            "real runs in fp32, fp16, bf16 and fp8 (minutes)",
            _precision,
            {"out": "study-precision", "steps": 300},
        ),
    },
    "activations": {
        "recomputation": _lecture(
            "recomputation", "study_recomputation", "what the backward needs, kept or computed again"
        ),
    },
    "collectives, hop by hop": {
        "tree-broadcast": _lecture(
            "collectives", "study_tree_broadcast", "one rank's numbers to all, in log2(n) hops"
        ),
        "reduce-scatter": _lecture(
            "collectives", "study_reduce_scatter", "a slice of the sum for each rank, around a ring"
        ),
        "all-gather": _lecture("collectives", "study_all_gather", "every rank's slice to all, around a ring"),
        "ring-all-reduce": _lecture(
            "collectives", "study_ring_all_reduce", "the sum for all ranks: the two before in a row"
        ),
        "halving-doubling": _lecture(
            "collectives", "study_halving_doubling", "the same in 2 log2(n) hops", POWERS_OF_TWO
        ),
        "all-to-all": _lecture("collectives", "study_all_to_all", "from every rank something for every rank"),
    },
    "parallelism": {
        "data-parallel": _lecture(
            "data_parallel", "study_data_parallel", "one model, each rank a part of the batch"
        ),
        "pipeline": _lecture(
            "pipeline", "study_pipeline", "layers over ranks: GPipe against 1F1B, by the clock"
        ),
        "split-matmul": _lecture(
            "split_matmul", "study_split_matmul", "a product cut by columns and by rows, and what each needs"
        ),
        "megatron-mlp": _lecture(
            "megatron_mlp", "study_megatron_mlp", "f and g, and why f adds up backward and g does not"
        ),
        "megatron-attention": _lecture(
            "megatron_attention", "study_megatron_attention", "heads over ranks, between the same f and g"
        ),
        "vocab-parallel-cross-entropy": _lecture(
            "vocab_parallel_cross_entropy",
            "study_vocab_parallel_cross_entropy",
            "a loss of which no rank has all logits",
        ),
        "combinations": _lecture(
            "combinations", "study_combinations", "all three at once: what each axis divides and sends"
        ),
        "zero": _lecture(
            "zero", "study_zero", "ZeRO 1, 2, 3: who holds what, before and after each collective"
        ),
    },
    "use of the hardware": {
        "utilisation": _lecture(
            "utilisation", "study_utilisation", "of a step's seconds, how many multiply: MFU, HFU, the rest"
        ),
    },
}
TOPICS = {name: topic for part in PARTS.values() for name, topic in part.items()}


def topics_with(option: str) -> str:
    """Names of the topics that take an option."""
    return ", ".join(name for name, topic in TOPICS.items() if option in topic.options)


def list_topics() -> str:
    """All of them, in the order in which the subject is taught."""
    lines = []
    for part, topics in PARTS.items():
        lines.append(f"{part}:")
        lines += [f"  {name:<30}{topic.summary}" for name, topic in topics.items()]
    return "\n".join(lines)
