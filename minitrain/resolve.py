"""Puts a value wherever one was left open: the model's derived sizes, the layout, the batch.

The result may still break rules (`validate.py`); only what has no answer at all is a problem here.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from minitrain.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from minitrain.defaults import OPTIMIZERS
from minitrain.errors import Problem
from minitrain.rules import LAYOUT_RULES, count_ranks, is_legal, near
from minitrain.validate import out_of_range

AXES = {"parallel.dp", "parallel.tp", "parallel.pp"}
GLOBAL_BATCH = 16  # sequences, if nothing else is asked for and dp x micro_batch divides it
WARMUP = 50  # steps


@dataclass(frozen=True)
class Resolved:
    """A configuration without gaps. `notices` are for the banner: what was chosen that may surprise."""

    config: Config
    notices: list[str]
    problems: list[Problem]
    doubtful: set[str]


def ranks_wanted(parallel: ParallelConfig) -> int:
    """The number of ranks that the configuration itself names; what it leaves out counts as 1."""
    return max(1, _or_one(parallel.dp) * _or_one(parallel.tp) * _or_one(parallel.pp))


def resolve(
    config: Config,
    given: dict[str, Any],
    world_size: int,
    pretrained: ModelConfig | None = None,
    doubtful: Collection[str] = (),
) -> Resolved:
    """Fills `config` for `world_size` ranks.

    `given` holds the fields that the user named, `pretrained` the model of `run.init_from`, `doubtful` the
    fields that are known to be wrong already.
    """
    problems: list[Problem] = []
    if pretrained is not None:
        problems += _contradictions(pretrained, given)
        seq_len = (
            min(pretrained.seq_len, config.model.seq_len) if "model.seq_len" in given else pretrained.seq_len
        )
        config = replace(config, model=replace(pretrained, seq_len=seq_len))
    optim = fill_optim(config.optim, config.train.steps)
    config = replace(config, model=fill_model(config.model), optim=optim)

    parallel, doubtful = config.parallel, set(doubtful)
    wrong = doubtful | out_of_range(config).keys()
    layout: tuple[int, int, int] | None = None
    if doubtful & AXES:
        doubtful |= AXES
    elif (parallel.dp, parallel.tp, parallel.pp) == (None, None, None):
        layout = choose_layout(config, world_size, wrong)
        if layout is None:
            problems += _no_layout(config, world_size, wrong)
            doubtful |= AXES
    else:
        tp, pp = _or_one(parallel.tp), _or_one(parallel.pp)
        dp = max(1, world_size // max(1, tp * pp)) if parallel.dp is None else parallel.dp
        layout = (dp, tp, pp)
        if parallel.dp is None and not wrong & AXES and world_size % (tp * pp):
            problems.append(_no_dp(config, tp, pp, world_size, wrong))
            doubtful.add("parallel.dp")
    filled, notices = with_layout(config, *(layout or (1, 1, 1))), []
    batch = filled.train.global_batch
    if config.train.global_batch is None and batch != GLOBAL_BATCH and layout:
        notices.append(f"global_batch {batch}: the default {GLOBAL_BATCH}, rounded up to dp x micro_batch")
    return Resolved(filled, notices, problems, doubtful)


def fill_model(model: ModelConfig) -> ModelConfig:
    """The sizes that follow from the others; legal ones even from illegal ones, which are problem enough."""
    ffn = 4 * model.width if model.arch == "gpt2" else _up(8 * model.width, 3 * 32) // 3
    return replace(
        model,
        kv_heads=max(1, model.heads) if model.kv_heads is None else model.kv_heads,
        ffn=max(1, ffn) if model.ffn is None else model.ffn,
        tied=(model.arch == "gpt2") if model.tied is None else model.tied,
    )


def choose_layout(
    config: Config, world_size: int, wrong: Collection[str] = ()
) -> tuple[int, int, int] | None:
    """The legal (dp, tp, pp) with most axes at work; of these the most balanced, then the largest dp, tp."""

    def merit(layout: tuple[int, int, int]) -> tuple[int, ...]:
        dp, tp, _ = layout
        return sum(n > 1 for n in layout), -max(layout), dp, tp

    legal = (
        (dp, tp, world_size // dp // tp)
        for dp in divisors(world_size)
        for tp in divisors(world_size // dp)
        if is_legal(LAYOUT_RULES, with_layout(config, dp, tp, world_size // dp // tp), world_size, wrong)
    )
    return max(legal, key=merit, default=None)


def with_layout(config: Config, dp: int, tp: int, pp: int) -> Config:
    """The configuration with this layout, and with the batch and the shard that follow from it."""
    parallel, train = config.parallel, config.train
    shard = parallel.shard if parallel.shard is not None else max(1, dp if parallel.zero else 1)
    return replace(
        config,
        parallel=replace(parallel, dp=dp, tp=tp, pp=pp, shard=shard),
        train=replace(train, global_batch=_global_batch(train, dp)),
    )


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _or_one(n: int | None) -> int:
    return 1 if n is None else n


def _global_batch(train: TrainConfig, dp: int) -> int:
    unit = max(1, dp * train.micro_batch)
    return _up(GLOBAL_BATCH, unit) if train.global_batch is None else train.global_batch


def _up(n: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `n`."""
    return -(-n // unit) * unit


def fill_optim(optim: OptimConfig, steps: int) -> OptimConfig:
    """The optimizer's own numbers. Warm-up is a tenth of the run and no more than WARMUP; the decay of wsd a
    fifth, after the warm-up.
    """
    own = OPTIMIZERS[optim.name]
    lr = own.lr
    if optim.classical and own.betas:  # the sum m is that much longer than the average
        lr *= 1 - (optim.betas or own.betas)[0]
    warmup = max(0, min(WARMUP, steps // 10)) if optim.warmup is None else optim.warmup
    decay = optim.decay
    if optim.schedule == "wsd" and decay is None:
        decay = max(0, min(steps // 5, steps - warmup))
    return replace(
        optim,
        lr=lr if optim.lr is None else optim.lr,
        betas=own.betas if optim.betas is None else optim.betas,
        eps=own.eps if optim.eps is None else optim.eps,
        rho=own.rho if optim.rho is None else optim.rho,
        weight_decay=(own.weight_decay or 0.0) if optim.weight_decay is None else optim.weight_decay,
        warmup=warmup,
        decay=decay,
    )


def _contradictions(pretrained: ModelConfig, given: dict[str, Any]) -> list[Problem]:
    """Where the user's words about the model differ from the weights. Fewer positions are fine."""
    problems = []
    for name, known in asdict(pretrained).items():
        said = given.get(f"model.{name}", known)
        if name == "seq_len" and said < known:
            continue
        if said != known:
            remedy = f"model.seq_len = {known} or less" if name == "seq_len" else f"leave model.{name} out"
            what = f"{name} is {said}, but {known} in the weights of run.init_from"
            problems.append(Problem(what, f"model.{name}, run.init_from", remedy))
    return problems


def _no_dp(config: Config, tp: int, pp: int, world_size: int, wrong: Collection[str]) -> Problem:
    """tp and pp are given, but no dp makes a world of them."""

    def legal(tp: int, pp: int) -> bool:
        layout = with_layout(config, max(1, world_size // (tp * pp)), tp, pp)
        return is_legal(LAYOUT_RULES, layout, world_size, wrong)

    what = f"tp {tp} x pp {pp} = {tp * pp} does not divide {count_ranks(world_size)}"
    below = world_size // (tp * pp) * (tp * pp)
    remedies = (
        _start(below, below + tp * pp),
        near("parallel.tp", tp, lambda n: legal(n, pp)),
        near("parallel.pp", pp, lambda n: legal(tp, n)),
    )
    return Problem(what, "parallel.tp, parallel.pp", ", or ".join(remedy for remedy in remedies if remedy))


def _no_layout(config: Config, world_size: int, wrong: Collection[str]) -> list[Problem]:
    """Why no layout is legal: the shard or the batch, where no dp fits it, else the number of ranks."""
    parallel, wrong = config.parallel, set(wrong)
    problems, least_dp = [], 1
    if parallel.shard and parallel.zero and not wrong & {"parallel.zero", "parallel.shard"}:
        if world_size % parallel.shard:
            what = f"shard {parallel.shard} does not divide {count_ranks(world_size)}"
            remedy = near("parallel.shard", parallel.shard, lambda n: world_size % n == 0)
            problems.append(Problem(what, "parallel.shard", remedy))
            wrong.add("parallel.shard")
        else:
            least_dp = parallel.shard
    if not wrong & {"train.global_batch", "train.micro_batch"}:
        problems += _batch_of_no_dp(config, least_dp, world_size, wrong)
    return problems or [_no_layout_of_this_size(config, world_size, wrong)]


def _batch_of_no_dp(config: Config, least_dp: int, world_size: int, wrong: Collection[str]) -> list[Problem]:
    """The problem, if no multiple of `least_dp` can be dp."""
    train, unit = config.train, least_dp * config.train.micro_batch
    if train.global_batch is None or train.global_batch % unit == 0:
        return []

    def legal(n: int) -> bool:
        other = replace(config, train=replace(train, global_batch=n))
        return choose_layout(other, world_size, wrong) is not None

    shards = f"shard {least_dp} x " if least_dp > 1 else ""
    what = f"global_batch {train.global_batch} is no multiple of {shards}micro_batch {train.micro_batch}"
    remedy = near("train.global_batch", train.global_batch, legal, unit)
    return [Problem(what, "train.global_batch, train.micro_batch", remedy)]


def _no_layout_of_this_size(config: Config, world_size: int, wrong: Collection[str]) -> Problem:
    def legal(n: int) -> bool:
        return choose_layout(config, n, wrong) is not None

    model, train, most = config.model, config.train, 4 * world_size + 16
    if train.global_batch is not None and not wrong:  # dp divides the micro-batches, tp heads; pp <= layers
        most = min(most, train.global_batch // train.micro_batch * model.heads * model.layers)
    below = next((n for n in range(min(world_size - 1, most), 0, -1) if legal(n)), None)
    above = next((n for n in range(world_size + 1, most + 1) if legal(n)), None)
    what = f"no layout of {count_ranks(world_size)} is legal for this model and batch"
    return Problem(what, "parallel.dp, parallel.tp, parallel.pp", _start(below, above))


def _start(*sizes: int | None) -> str:
    """What to do about the number of ranks."""
    known = [n for n in sizes if n]
    return f"start {' or '.join(map(str, known))} rank{'' if known == [1] else 's'} (mpirun -n)"
