"""What drills need of a configuration (drills.py): rules as those of rules.py, of one field, `run.drill`."""

from collections.abc import Callable

from minitrain.config import Config
from minitrain.rules import Breach, Rule, extents

STRIKE = 3  # the step in which drills strike that do so once

Lack = tuple[str, str] | None
"""What a drill needs and has not, as the end of a sentence about it; and a remedy."""


def _of_drills(*names: str) -> Callable[[Callable[[Config], Lack]], Callable[[Config, int], Breach]]:
    """Makes a rule of what these drills need."""

    def rule(lacks: Callable[[Config], Lack]) -> Callable[[Config, int], Breach]:
        def breach(c: Config, world_size: int) -> Breach:
            lack = lacks(c) if c.run.drill in names else None
            return lack and (f"drill {c.run.drill} {lack[0]}", f"{lack[1]}, or run.drill = none")

        return breach

    return rule


@_of_drills("partial-sum")
def _over_tp(c: Config) -> Lack:
    _, tp, _ = extents(c)
    return None if tp > 1 else (f"needs 2 tensor-parallel ranks, but tp is {tp}", "parallel.tp = 2 or more")


@_of_drills("partial-sum")
def _of_all_reduces(c: Config) -> Lack:
    if not c.parallel.sequence:
        return None
    return "leaves out an all-reduce, of which sequence parallelism has none", "parallel.sequence = false"


@_of_drills("dropped-receive")
def _over_pp(c: Config) -> Lack:
    _, _, pp = extents(c)
    return None if pp > 1 else (f"needs 2 pipeline stages, but pp is {pp}", "parallel.pp = 2 or more")


@_of_drills("same-data", "sum-for-mean")
def _over_dp(c: Config) -> Lack:
    dp, _, _ = extents(c)
    return None if dp > 1 else (f"needs 2 data-parallel ranks, but dp is {dp}", "parallel.dp = 2 or more")


@_of_drills("swapped-shard")
def _over_shard(c: Config) -> Lack:
    shard, zero, (dp, _, _) = c.parallel.shard, c.parallel.zero, extents(c)
    if shard is None or shard > 1:
        return None
    remedy = "parallel.zero 1, 2 or 3 on a parallel.dp of 2 or more"
    if zero and dp > 1:
        remedy = f"parallel.shard = {dp}"
    return f"needs 2 shards, but shard is {shard}", remedy


@_of_drills("skipped-all-reduce", "flipped-bit")
def _over_replicas(c: Config) -> Lack:
    shard, (dp, _, _) = c.parallel.shard, extents(c)
    if shard is None or dp >= 2 * shard:
        return None
    remedy = f"parallel.dp = {2 * shard} or more" + (", or a lower parallel.shard" if shard > 1 else "")
    return f"needs 2 replicas, but dp {dp} / shard {shard} = {dp // shard}", remedy


@_of_drills("straggler")
def _over_peers(c: Config) -> Lack:
    dp, tp, _ = extents(c)
    if dp * tp > 1:
        return None
    what = f"needs 2 ranks of one pipeline stage, but dp {dp} x tp {tp} = 1"
    return what, "parallel.dp or parallel.tp = 2 or more"


@_of_drills("dropped-receive", "flipped-bit")
def _strikes_in_time(c: Config) -> Lack:
    steps = c.train.steps
    if steps >= STRIKE:
        return None
    return f"strikes in step {STRIKE}, but train.steps is {steps}", f"train.steps = {STRIKE} or more"


DRILL_RULES = (
    Rule(("run.drill", "parallel.tp"), _over_tp),
    Rule(("run.drill", "parallel.pp"), _over_pp),
    Rule(("run.drill", "parallel.dp"), _over_dp),
    Rule(("run.drill", "parallel.zero", "parallel.shard", "parallel.dp"), _over_shard),
    Rule(("run.drill", "parallel.dp", "parallel.shard"), _over_replicas),
    Rule(("run.drill", "parallel.dp", "parallel.tp"), _over_peers),
    Rule(("run.drill", "parallel.sequence"), _of_all_reduces),
    Rule(("run.drill", "train.steps"), _strikes_in_time),
)
