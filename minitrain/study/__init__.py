"""Studies: a topic of the textbook shown by this project's own code, in numbers and figures.

Figures need matplotlib, which nothing else does (`figures.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Topic(NamedTuple):
    summary: str
    run: Callable[..., None]
    options: dict[str, Any]  # its own of --out and --steps, with their defaults; arguments of `run`


def _formats() -> None:
    from minitrain.study.formats import study_formats

    study_formats()


def _optimizers(out: str) -> None:
    from minitrain.study.optimizers import study_optimizers

    study_optimizers(out)


def _precision(out: str, steps: int) -> None:
    from minitrain.study.precision import study_precision

    study_precision(out, steps)


TOPICS = {
    "formats": Topic("what floats of 64 to 8 bits can hold", _formats, {}),
    "optimizers": Topic(
        "paths of optimizers over a bowl, a bump and a saddle", _optimizers, {"out": "study-optimizers"}
    ),
    "precision": Topic(
        "real runs in fp32, fp16, bf16 and fp8 (minutes)",
        _precision,
        {"out": "study-precision", "steps": 300},
    ),
}


def topics_with(option: str) -> str:
    """Names of the topics that take an option."""
    return ", ".join(name for name, topic in TOPICS.items() if option in topic.options)
