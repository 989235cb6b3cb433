"""What must hold between the fields of a configuration, every breach with the nearest legal values.

A rule returns None, or what is wrong and what to do. The tables at the end say which fields each rule reads.
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from minitrain.config import Config, LossScaleConfig, ModelConfig, OptimConfig
from minitrain.defaults import OPTIMIZERS
from minitrain.errors import Problem

Remedy = str | Callable[[], str]  # the values to advise may have to be searched for
Breach = tuple[str, Remedy] | None


class Rule(NamedTuple):
    """What must hold between `fields`."""

    fields: tuple[str, ...]
    breach: Callable[[Config, int], Breach]

    def ask(self, config: Config, world_size: int, wrong: Collection[str]) -> Breach:
        """None if it holds, or if it cannot be asked because a field is wrong by itself."""
        return None if any(name in wrong for name in self.fields) else self.breach(config, world_size)


def breaches(rules: Iterable[Rule], config: Config, world_size: int, wrong: Collection[str]) -> list[Problem]:
    """The problems of those rules that concern none of the fields `wrong`."""
    found = []
    for rule in rules:
        breach = rule.ask(config, world_size, wrong)
        if breach is not None:
            what, remedy = breach
            remedy = remedy if isinstance(remedy, str) else remedy()
            found.append(Problem(what, ", ".join(rule.fields), remedy))
    return found


def is_legal(rules: Iterable[Rule], config: Config, world_size: int, wrong: Collection[str]) -> bool:
    """Whether there are no `breaches`, without a search for remedies."""
    return all(rule.ask(config, world_size, wrong) is None for rule in rules)


def near(name: str, value: int, legal: Callable[[int], bool] = lambda n: True, unit: int = 1) -> str:
    """`name = 2 or 4`: the nearest legal multiples of `unit` below and above `value`; "" if there is none."""
    reach = 1000 * unit
    below = next((n for n in range((value - 1) // unit * unit, 0, -unit) if legal(n)), None)
    above = next((n for n in range((value // unit + 1) * unit, value + reach + 1, unit) if legal(n)), None)
    values = " or ".join(str(n) for n in (below, above) if n is not None)
    return f"{name} = {values}" if values else ""


def _width_over_heads(c: Config, world_size: int) -> Breach:
    width, heads = c.model.width, c.model.heads
    if width % heads == 0:
        return None
    what = f"width {width} does not divide by {heads} heads"
    also = f", or width a multiple of {heads}"
    return what, lambda: near("model.heads", heads, lambda n: width % n == 0) + also


def _even_head_width(c: Config, world_size: int) -> Breach:
    width, heads = c.model.width, c.model.heads
    if c.model.arch != "llama" or width % heads or width // heads % 2 == 0:
        return None
    what = f"rotary embedding turns pairs, but width {width} / {heads} heads = {width // heads} is odd"
    return what, near("model.width", width, unit=2 * heads)


def _heads_over_kv_heads(c: Config, world_size: int) -> Breach:
    heads, kv = c.model.heads, c.model.kv_heads
    if kv is None or heads % kv == 0 or c.model.arch == "gpt2":
        return None
    what = f"{heads} heads do not divide by {kv} kv_heads"
    return what, lambda: near("model.kv_heads", kv, lambda n: heads % n == 0)


def _gpt2_kv_heads(c: Config, world_size: int) -> Breach:
    if c.model.arch != "gpt2" or c.model.kv_heads == c.model.heads:
        return None
    what = f"gpt2 has no grouped heads, but kv_heads is {c.model.kv_heads} and heads is {c.model.heads}"
    return what, f"leave kv_heads out, or set it to {c.model.heads}"


def _gpt2_tied(c: Config, world_size: int) -> Breach:
    if c.model.arch != "gpt2" or c.model.tied:
        return None
    return "gpt2's head is its embedding matrix, but tied is false", "leave tied out"


def _byte_vocabulary(c: Config, world_size: int) -> Breach:
    if c.model.vocab >= 256 or c.data.tokenizer != "bytes" or is_token_file(c.data.path):
        return None
    return f"the bytes tokenizer has 256 ids, but the vocabulary {c.model.vocab}", "model.vocab = 256 or more"


def _ranks(c: Config, world_size: int) -> Breach:
    dp, tp, pp = extents(c)
    if dp * tp * pp == world_size:
        return None
    started = f"{count_ranks(world_size)} {'was' if world_size == 1 else 'were'} started"
    what = f"dp {dp} x tp {tp} x pp {pp} = {dp * tp * pp} ranks, but {started}"
    return what, f"start {dp * tp * pp} (mpirun -n {dp * tp * pp}), or make the product {world_size}"


def _heads_over_tp(c: Config, world_size: int) -> Breach:
    heads, (_, tp, _) = c.model.heads, extents(c)
    if heads % tp == 0:
        return None
    what = f"{heads} heads do not divide by tp {tp}"
    return what, lambda: near("parallel.tp", tp, lambda n: heads % n == 0 and _kv_heads_fit(c, n))


def _kv_heads_over_tp(c: Config, world_size: int) -> Breach:
    heads, (_, tp, _) = c.model.heads, extents(c)
    if heads % tp or _kv_heads_fit(c, tp):  # heads that do not divide are another rule's
        return None
    what = f"{c.model.kv_heads} kv_heads and tp {tp}: neither divides the other"
    return what, lambda: near("parallel.tp", tp, lambda n: heads % n == 0 and _kv_heads_fit(c, n))


def _kv_heads_fit(c: Config, tp: int) -> bool:
    kv = c.model.kv_heads
    return kv is None or kv == c.model.heads or kv % tp == 0 or tp % kv == 0


def _layers_over_pp(c: Config, world_size: int) -> Breach:
    layers, (_, _, pp) = c.model.layers, extents(c)
    if layers >= pp:
        return None
    return f"layers {layers} is less than pp {pp}", f"parallel.pp = {layers} or less"


def _shard_over_dp(c: Config, world_size: int) -> Breach:
    shard, (dp, _, _) = c.parallel.shard, extents(c)
    if shard is None or dp % shard == 0 or c.parallel.zero == 0:  # a shard without zero is another rule's
        return None
    what = f"dp {dp} does not divide by shard {shard}"
    return what, lambda: near("parallel.shard", shard, lambda n: dp % n == 0)


def _shard_needs_zero(c: Config, world_size: int) -> Breach:
    if c.parallel.zero > 0 or c.parallel.shard in (None, 1):
        return None
    what = f"shard is {c.parallel.shard}, but zero 0 shards nothing"
    return what, "parallel.zero = 1, 2 or 3, or leave shard out"


def _sequence_over_tp(c: Config, world_size: int) -> Breach:
    tokens, (_, tp, _) = c.train.micro_batch * c.model.seq_len, extents(c)
    if not c.parallel.sequence or tokens % tp == 0:
        return None
    what = f"sequence parallelism splits the {tokens} tokens of a micro-batch, which tp {tp} does not divide"
    return what, lambda: near("parallel.tp", tp, lambda n: tokens % n == 0)


def _global_batch(c: Config, world_size: int) -> Breach:
    batch, micro, (dp, _, _) = c.train.global_batch, c.train.micro_batch, extents(c)
    if batch is None or batch % (dp * micro) == 0:
        return None
    what = f"global_batch {batch} is no multiple of dp {dp} x micro_batch {micro}"
    also = f", or train.micro_batch = {batch // dp}" if batch % dp == 0 else ""
    return what, near("train.global_batch", batch, unit=dp * micro) + also


def _exact_over_dp(c: Config, world_size: int) -> Breach:
    dp, _, _ = extents(c)
    if not c.run.exact or _is_power_of_two(dp):
        return None
    what = f"run.exact adds up in a binary tree, but dp {dp} is no power of two"
    return what, lambda: near("parallel.dp", dp, _is_power_of_two)


def _exact_micro_batches(c: Config, world_size: int) -> Breach:
    batch, micro, (dp, _, _) = c.train.global_batch, c.train.micro_batch, extents(c)
    if not c.run.exact or batch is None or batch % (dp * micro) or not _is_power_of_two(dp):
        return None
    n = batch // micro
    if _is_power_of_two(n):
        return None
    count = f"global_batch {batch} / micro_batch {micro} = {n}"
    below = micro << (n.bit_length() - 1)
    what = f"run.exact adds up in a binary tree, but {count} is no power of two"
    return what, f"train.global_batch = {below} or {2 * below}"


def _exact_optimizers(c: Config, world_size: int) -> Breach:
    name = c.optim.name
    if not c.run.exact or name not in ("adafactor", "lamb"):
        return None
    what = f"{name} adds up over pieces of tensors, which other layouts cut elsewhere, but run.exact is given"
    return what, "leave run.exact out, or choose any other optimizer"


def _warmup(c: Config, world_size: int) -> Breach:
    if c.optim.warmup is None or c.optim.warmup <= c.train.steps:
        return None
    what = f"warmup {c.optim.warmup} is longer than {c.train.steps} steps"
    return what, f"optim.warmup = {c.train.steps} or less"


def _decay_is_of_wsd(c: Config, world_size: int) -> Breach:
    if c.optim.decay is None or c.optim.schedule == "wsd":
        return None
    what = f"decay belongs to schedule wsd, but the schedule is {c.optim.schedule}"
    return what, "leave decay out, or choose wsd"


def _decay(c: Config, world_size: int) -> Breach:
    if c.optim.warmup is None or c.optim.decay is None or c.optim.schedule != "wsd":
        return None
    left = c.train.steps - c.optim.warmup
    if c.optim.decay <= left or left < 0:
        return None
    what = f"decay {c.optim.decay} and warmup {c.optim.warmup} are longer than {c.train.steps} steps"
    return what, f"optim.decay = {left} or less"


def _min_lr(c: Config, world_size: int) -> Breach:
    if c.optim.lr is None or c.optim.min_lr <= c.optim.lr:
        return None
    return f"min_lr {c.optim.min_lr} is above lr {c.optim.lr}", f"optim.min_lr = {c.optim.lr} or less"


def _belongs(field: str) -> Callable[[Config, int], Breach]:
    """An optimizer's number is refused for one that has none such. Asked for is what differs from the
    default: config.toml, to be read again, holds the default too.
    """

    def has(name: str) -> bool:
        known = OPTIMIZERS[name]
        return field in known.also or getattr(known, field, None) is not None

    def breach(c: Config, world_size: int) -> Breach:
        name, value, default = c.optim.name, getattr(c.optim, field), getattr(OptimConfig(), field)
        if has(name) or value == default or (field == "weight_decay" and value == 0):
            return None
        owners = ", ".join(owner for owner in OPTIMIZERS if has(owner))
        what = f"{field} is given, but the optimizer is {name}, which has none"
        return what, f"leave {field} out, or choose one of {owners}"

    return breach


def _scaling_is_of_fp16(c: Config, world_size: int) -> Breach:
    if c.precision == "fp16" or c.loss_scale == LossScaleConfig():
        return None
    what = f"a loss scale belongs to precision fp16, but the precision is {c.precision}"
    return what, "leave loss_scale out, or choose fp16"


def _loss_scale_above_minimum(c: Config, world_size: int) -> Breach:
    scale = c.loss_scale
    if scale.initial >= scale.minimum:
        return None
    what = f"the initial loss scale {scale.initial:g} is below its minimum {scale.minimum:g}"
    return what, f"loss_scale.initial = {scale.minimum:g} or more"


def _stochastic_rounding_is_of_bf16_pure(c: Config, world_size: int) -> Breach:
    if c.precision == "bf16-pure" or not c.optim.stochastic_rounding:
        return None
    what = f"stochastic rounding is of weights kept in bf16 alone, but the precision is {c.precision}"
    return what, "leave stochastic_rounding out, or choose bf16-pure"


def _hutchinson_needs_digits(c: Config, world_size: int) -> Breach:
    if c.optim.name != "sophia-h" or c.precision in ("fp32", "fp64"):
        return None
    what = f"sophia-h takes a difference of two gradients, of which {c.precision} leaves nothing but rounding"
    return what, "precision = fp32 or fp64, or choose sophia-g"


def _attention_is_of_gpus(c: Config, world_size: int) -> Breach:
    if c.backend != "numpy" or c.attention in ("auto", "materialised"):
        return None
    what = f"attention {c.attention} needs backend cupy, but the backend is {c.backend}"
    return what, "leave attention out, or choose cupy"


def _rope_theta_is_of_llama(c: Config, world_size: int) -> Breach:
    if c.model.arch == "llama" or c.model.rope_theta == ModelConfig().rope_theta:
        return None
    return "gpt2 has no rotary embedding, but rope_theta is given", "leave rope_theta out, or choose llama"


def _nccl_is_of_gpus(c: Config, world_size: int) -> Breach:
    if c.collectives != "nccl" or c.backend != "numpy":
        return None
    return (
        "nccl moves arrays of GPUs, but the backend is numpy",
        "leave backend out, or choose collectives mpi",
    )


def _gemm_is_of_gpus(c: Config, world_size: int) -> Breach:
    if c.gemm == "auto" or c.backend != "numpy":
        return None
    return f"{c.gemm} multiplies on GPUs, but the backend is numpy", "leave gemm out, or leave backend out"


def _is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def count_ranks(n: int) -> str:
    return "1 rank" if n == 1 else f"{n} ranks"


def is_token_file(path: str | None) -> bool:
    """Whether this is a file of token ids (llm.c), which has no tokenizer."""
    return path is not None and path.endswith(".bin")


def extents(c: Config) -> tuple[int, int, int]:
    """dp, tp, pp."""
    dp, tp, pp = c.parallel.dp, c.parallel.tp, c.parallel.pp
    assert dp is not None and tp is not None and pp is not None, "resolve comes before validate"
    return dp, tp, pp


MODEL_RULES = (
    Rule(("model.width", "model.heads"), _width_over_heads),
    Rule(("model.arch", "model.width", "model.heads"), _even_head_width),
    Rule(("model.heads", "model.kv_heads"), _heads_over_kv_heads),
    Rule(("model.arch", "model.heads", "model.kv_heads"), _gpt2_kv_heads),
    Rule(("model.arch", "model.tied"), _gpt2_tied),
    Rule(("model.rope_theta", "model.arch"), _rope_theta_is_of_llama),
    Rule(("model.vocab", "data.tokenizer", "data.path"), _byte_vocabulary),
)
LAYOUT_RULES = (  # each reads dp, tp or pp: what these cannot mend is no reason against a layout
    Rule(("parallel.dp", "parallel.tp", "parallel.pp"), _ranks),
    Rule(("parallel.tp", "model.heads"), _heads_over_tp),
    Rule(("parallel.tp", "model.heads", "model.kv_heads"), _kv_heads_over_tp),
    Rule(("parallel.pp", "model.layers"), _layers_over_pp),
    Rule(("parallel.dp", "parallel.shard"), _shard_over_dp),
    Rule(("parallel.sequence", "parallel.tp", "train.micro_batch", "model.seq_len"), _sequence_over_tp),
    Rule(("train.global_batch", "parallel.dp", "train.micro_batch"), _global_batch),
    Rule(("run.exact", "parallel.dp"), _exact_over_dp),
)
OF_SOME_OPTIMIZERS = ("betas", "eps", "rho", "weight_decay", "classical", "beta3", "curvature_every")
TRAIN_RULES = (
    Rule(("parallel.zero", "parallel.shard"), _shard_needs_zero),
    Rule(("run.exact", "train.global_batch", "train.micro_batch"), _exact_micro_batches),
    Rule(("run.exact", "optim.name"), _exact_optimizers),
    Rule(("optim.warmup", "train.steps"), _warmup),
    Rule(("optim.decay", "optim.schedule"), _decay_is_of_wsd),
    Rule(("optim.decay", "optim.warmup", "train.steps"), _decay),
    Rule(("optim.min_lr", "optim.lr"), _min_lr),
    *(Rule((f"optim.{field}", "optim.name"), _belongs(field)) for field in OF_SOME_OPTIMIZERS),
    Rule(("loss_scale", "precision"), _scaling_is_of_fp16),
    Rule(("loss_scale.initial", "loss_scale.minimum"), _loss_scale_above_minimum),
    Rule(("optim.stochastic_rounding", "precision"), _stochastic_rounding_is_of_bf16_pure),
    Rule(("optim.name", "precision"), _hutchinson_needs_digits),
    Rule(("collectives", "backend"), _nccl_is_of_gpus),
    Rule(("gemm", "backend"), _gemm_is_of_gpus),
    Rule(("attention", "backend"), _attention_is_of_gpus),
)
