"""What is left open gets the value that the documentation says."""

from dataclasses import replace

import pytest

from minitrain.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from minitrain.defaults import OPTIMIZERS
from minitrain.fields import known_fields
from minitrain.resolve import GLOBAL_BATCH, WARMUP, Resolved, fill_model, resolve
from minitrain.validate import validate


def layout(config: Config) -> tuple[int | None, int | None, int | None]:
    return config.parallel.dp, config.parallel.tp, config.parallel.pp


@pytest.mark.parametrize("ranks, chosen", [
    (1, (1, 1, 1)), (2, (2, 1, 1)), (3, (3, 1, 1)), (4, (2, 2, 1)),
    (6, (3, 2, 1)), (8, (2, 2, 2)), (16, (4, 2, 2)), (32, (4, 4, 2)),
])  # fmt: skip
def test_layout_chosen_for_the_default_model(ranks: int, chosen: tuple[int, int, int]) -> None:
    assert layout(resolve(Config(), {}, ranks).config) == chosen


@pytest.mark.parametrize("ranks", range(1, 65))
def test_a_chosen_layout_breaks_no_rule(ranks: int) -> None:
    for model in (
        ModelConfig(),
        ModelConfig(arch="gpt2", layers=3, heads=8),
        ModelConfig(heads=12, kv_heads=3, width=96),
    ):
        for parallel in (ParallelConfig(), ParallelConfig(zero=2), ParallelConfig(sequence=True)):
            resolved = resolve(Config(model=model, parallel=parallel), {}, ranks)
            assert not resolved.problems and not validate(resolved.config, ranks)


def test_a_given_batch_limits_the_layout() -> None:
    resolved = resolve(Config(train=TrainConfig(global_batch=4)), {}, 8)
    assert layout(resolved.config) == (1, 4, 2)
    assert resolved.config.train.global_batch == 4


def test_what_is_given_of_a_layout_stays_and_dp_takes_the_rest() -> None:
    assert layout(resolve(Config(parallel=ParallelConfig(tp=2)), {}, 8).config) == (4, 2, 1)
    assert layout(resolve(Config(parallel=ParallelConfig(pp=2)), {}, 8).config) == (4, 1, 2)
    assert layout(resolve(Config(parallel=ParallelConfig(dp=2, tp=4)), {}, 8).config) == (2, 4, 1)
    assert layout(resolve(Config(parallel=ParallelConfig(dp=2)), {}, 8).config) == (2, 1, 1)  # to be refused


@pytest.mark.parametrize("ranks, micro_batch", [(1, 4), (2, 4), (3, 4), (5, 4), (2, 3), (7, 1), (1, 33)])
def test_global_batch_is_the_smallest_multiple_from_the_default_up(ranks: int, micro_batch: int) -> None:
    config = Config(train=TrainConfig(micro_batch=micro_batch), parallel=ParallelConfig(dp=ranks))
    resolved = resolve(config, {}, ranks)
    multiples = range(ranks * micro_batch, 1000, ranks * micro_batch)
    batch = next(n for n in multiples if n >= GLOBAL_BATCH)
    assert resolved.config.train.global_batch == batch
    assert any("global_batch" in notice for notice in resolved.notices) == (batch != GLOBAL_BATCH)


def test_the_help_names_the_default_batch() -> None:
    assert f"default: {GLOBAL_BATCH}," in known_fields()["train.global_batch"].help


def test_the_help_names_the_default_warm_up() -> None:
    assert f"default: {WARMUP}, or a tenth" in known_fields()["optim.warmup"].help


def test_shard_is_all_of_dp_under_zero_only() -> None:
    for zero, shard in ((0, 1), (1, 4), (3, 4)):
        config = Config(parallel=ParallelConfig(dp=4, zero=zero))  # type: ignore[arg-type]
        assert resolve(config, {}, 4).config.parallel.shard == shard
    config = Config(parallel=ParallelConfig(dp=4, zero=1, shard=2))
    assert resolve(config, {}, 4).config.parallel.shard == 2


def test_model_sizes_that_follow() -> None:
    llama, gpt2 = fill_model(ModelConfig(width=128)), fill_model(ModelConfig(arch="gpt2", width=128, heads=8))
    assert (llama.kv_heads, llama.ffn, llama.tied) == (4, 352, False)  # 8/3 of 128 is 341.3
    assert (gpt2.kv_heads, gpt2.ffn, gpt2.tied) == (8, 512, True)
    assert fill_model(ModelConfig(width=96)).ffn == 256, "8/3 of 96 is a multiple of 32 already"
    said = ModelConfig(kv_heads=2, ffn=100, tied=True)
    assert fill_model(said) == said


def test_schedule_lengths_that_follow() -> None:
    def optim(steps: int, given: dict[str, int], **said: object) -> Resolved:
        config = Config(train=TrainConfig(steps=steps), optim=OptimConfig(**said, **given))  # type: ignore[arg-type]
        return resolve(config, {f"optim.{name}": value for name, value in given.items()}, 1)

    for steps, warmup in ((5, 0), (20, 2), (499, 49), (500, 50), (1500, 50)):
        assert optim(steps, {}).config.optim.warmup == warmup and not optim(steps, {}).notices
    assert optim(5, {"warmup": 20}).config.optim.warmup == 20, "said, and to be refused"
    assert optim(500, {}, schedule="wsd").config.optim.decay == 100
    assert optim(24, {"warmup": 21}, schedule="wsd").config.optim.decay == 3, "what the warm-up leaves"
    assert optim(500, {}).config.optim.decay is None


PRETRAINED = fill_model(ModelConfig(arch="gpt2", layers=3, width=48, vocab=300, seq_len=32))


def test_weights_bring_their_model() -> None:
    assert resolve(Config(), {}, 1, PRETRAINED).config.model == PRETRAINED
    shorter = replace(Config(), model=ModelConfig(seq_len=16, layers=3))
    resolved = resolve(shorter, {"model.seq_len": 16, "model.layers": 3}, 1, PRETRAINED)
    assert resolved.config.model == replace(PRETRAINED, seq_len=16) and not resolved.problems


@pytest.mark.parametrize(
    "name, value",
    [("layers", 2), ("arch", "llama"), ("tied", False), ("seq_len", 33), ("vocab", 256), ("ffn", 1)],
)
def test_what_contradicts_the_weights_is_a_problem(name: str, value: object) -> None:
    config = replace(Config(), model=replace(ModelConfig(), **{name: value}))  # type: ignore[arg-type]
    (problem,) = resolve(config, {f"model.{name}": value}, 1, PRETRAINED).problems
    assert f"{name} is {value}, but {getattr(PRETRAINED, name)} in the weights" in problem.what
    assert f"model.{name}" in problem.where


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(Config(optim=OptimConfig(schedule="wsd")), {}, 8).config
    assert resolve(once, {}, 8).config == once


def test_every_optimizer_has_numbers_of_its_own() -> None:
    for name, own in OPTIMIZERS.items():
        optim = resolve(Config(optim=OptimConfig(name=name)), {}, 1).config.optim  # type: ignore[arg-type]
        assert (optim.lr, optim.betas, optim.eps, optim.rho) == (own.lr, own.betas, own.eps, own.rho)
        assert optim.weight_decay == (own.weight_decay or 0)
    asked = OptimConfig(name="lamb", lr=7.0, betas=(0.1, 0.2), eps=3.0, weight_decay=0.0)
    optim = resolve(Config(optim=asked), {}, 1).config.optim
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (7.0, (0.1, 0.2), 3.0, 0.0)


def test_classical_momentum_has_a_rate_that_makes_the_same_steps() -> None:
    average, classical = (
        resolve(Config(optim=OptimConfig(name="momentum", classical=c)), {}, 1).config.optim
        for c in (False, True)
    )
    assert average.lr and classical.lr == pytest.approx(0.1 * average.lr)
