"""Whether a configuration can run: each number alone, then what must hold between several (`rules.py`,
`drill_rules.py`).
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from minitrain.config import Config
from minitrain.drill_rules import DRILL_RULES
from minitrain.errors import Problem
from minitrain.fields import field_value
from minitrain.rules import LAYOUT_RULES, MODEL_RULES, TRAIN_RULES, breaches

RULES = MODEL_RULES + LAYOUT_RULES + TRAIN_RULES + DRILL_RULES


class Range(NamedTuple):
    """Which numbers a field takes."""

    accepts: Callable[[float], bool]
    text: str
    remedy: str


def validate(config: Config, world_size: int, doubtful: Collection[str] = ()) -> list[Problem]:
    """Every problem of a resolved configuration on `world_size` ranks, but for those about `doubtful` fields.

    A rule is asked only if its fields are right by themselves, so that one mistake is reported once.
    """
    out = out_of_range(config)
    wrong = out.keys() | set(doubtful)
    problems = [problem for name, problem in out.items() if name not in doubtful]
    return problems + breaches(RULES, config, world_size, wrong)


def out_of_range(config: Config) -> dict[str, Problem]:
    """The fields whose numbers are wrong by themselves."""
    problems = {}
    for name, limits in RANGES.items():
        value = field_value(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(v is None or limits.accepts(v) for v in values):
            problems[name] = Problem(f"{name} is {value}, not {limits.text}", name, limits.remedy)
    return problems


def _whole(least: int, most: int) -> Range:
    text = f"{least} to {most:,}"
    return Range(lambda n: least <= n <= most, f"a whole number from {text}", f"give {text}")


_COUNT = Range(lambda n: n >= 0, "zero or a positive whole number", "give 0 or more")
_ABOVE_ZERO = Range(lambda x: 0 < x < math.inf, "a finite number above 0", "give a number above 0")
_NOT_NEGATIVE = Range(lambda x: 0 <= x < math.inf, "zero or a finite positive number", "give 0 or more")
_BELOW_ONE = Range(lambda x: 0 <= x < 1, "within 0 <= x < 1", "give a number from 0 to below 1")

# The upper ends are far beyond any model so far, and low enough that whatever is checked takes no time.
RANGES = {
    "model.layers": _whole(1, 10_000),
    **{f"model.{name}": _whole(1, 100_000) for name in ("heads", "kv_heads")},
    **{f"model.{name}": _whole(1, 10**9) for name in ("width", "ffn", "vocab", "seq_len")},
    **{f"model.{name}": _ABOVE_ZERO for name in ("rope_theta", "norm_eps")},
    **{f"parallel.{name}": _whole(1, 100_000) for name in ("dp", "tp", "pp", "shard")},
    **{f"train.{name}": _whole(1, 10**9) for name in ("steps", "global_batch", "micro_batch")},
    **{f"train.{name}": _whole(0, 10**9) for name in ("eval_every", "eval_sequences")},
    "train.seed": _COUNT,
    **{f"optim.{name}": _whole(0, 10**9) for name in ("warmup", "decay")},
    **{f"optim.{name}": _NOT_NEGATIVE for name in ("lr", "weight_decay", "clip", "min_lr")},
    **{f"optim.lr_{group}": _NOT_NEGATIVE for group in ("vectors", "embeddings", "head")},
    **{f"optim.{name}": _BELOW_ONE for name in ("betas", "beta3")},
    **{f"optim.{name}": _ABOVE_ZERO for name in ("eps", "rho")},
    "optim.curvature_every": _whole(1, 10**9),
    **{f"loss_scale.{name}": _ABOVE_ZERO for name in ("initial", "minimum")},
    **{f"loss_scale.{name}": _whole(1, 10**9) for name in ("growth_interval", "hysteresis")},
    "loss_scale.backoff": Range(lambda x: 0 < x < 1, "within 0 < x < 1", "give a number between 0 and 1"),
    "data.holdout": _BELOW_ONE,
    **{
        f"run.{name}": _whole(0, 10**9)
        for name in ("sample_tokens", "save_every", "keep", "compare_every", "trace_steps")
    },
    "run.hang_seconds": _NOT_NEGATIVE,
    "run.temperature": _NOT_NEGATIVE,
}
