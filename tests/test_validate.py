"""The rules of a configuration: each has a case that breaks it, and what a message advises breaks none."""

import functools
import itertools
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import DRILLS, LAYOUT, MODEL, TRAINING, Refusal

from minitrain.arguments import parse
from minitrain.config import Config, ModelConfig, ParallelConfig, TrainConfig
from minitrain.errors import MinitrainError
from minitrain.fields import known_fields
from minitrain.prepare import prepare
from minitrain.resolve import AXES, resolve
from minitrain.rules import LAYOUT_RULES, Rule, near
from minitrain.settings import read_settings
from minitrain.validate import RANGES, RULES, validate

JUDGED = MODEL + LAYOUT + TRAINING + DRILLS


@functools.cache
def config_of(case: Refusal) -> Config:
    said = read_settings(parse(case.arguments.split()))
    return resolve(said.config, said.given, case.ranks).config


def problems_of(line: str, ranks: int) -> list[str]:
    return [problem.where for problem in validate(config_of(Refusal(line, (), ranks)), ranks)]


def test_the_defaults_break_no_rule() -> None:
    for ranks in (1, 2, 3, 4, 8, 16):
        assert validate(resolve(Config(), {}, ranks).config, ranks) == []


def test_every_number_has_a_range_and_every_range_a_number() -> None:
    numbers = {
        name for name, field in known_fields().items() if {int, float, tuple[float, float]} & set(field.kinds)
    }
    assert set(RANGES) == numbers


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: ", ".join(rule.fields))
def test_every_rule_is_broken_by_a_case_of_the_table(rule: Rule) -> None:
    """In its own words, because two rules may be about the same fields."""
    assert any(rule.ask(config_of(case), case.ranks, ()) for case in JUDGED)


def test_rules_of_the_layout_are_about_the_layout() -> None:
    for rule in LAYOUT_RULES:
        assert AXES & set(rule.fields)


def test_a_number_that_is_wrong_by_itself_is_reported_once() -> None:
    for line in (
        "--model.heads 0",
        "--parallel.tp 0",
        "--train.micro_batch 0",
        "--model.kv_heads -2",
        "--parallel.pp -1",
    ):
        assert problems_of(line, 4) == [line.split()[0].lstrip("-")]


ADVICE = re.compile(r"((?:model|parallel|train|optim)\.\w+) = (\d+)(?: or (\d+))?")


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.arguments)
def test_the_values_advised_end_the_problem(case: Refusal) -> None:
    config = config_of(case)
    for problem in validate(config, case.ranks):
        for name, *values in ADVICE.findall(problem.remedy):
            section, field = name.split(".")
            for value in filter(None, values):
                table = replace(getattr(config, section), **{field: int(value)})
                better = validate(replace(config, **{section: table}), case.ranks)
                assert problem.where not in {other.where for other in better}


@pytest.mark.parametrize("ranks", range(1, 9))
def test_the_values_advised_give_a_layout(ranks: int) -> None:
    """Where no layout was found for lack of a dp, one of the values of every remedy finds one."""
    found = 0
    for batch, micro, zero, shard in itertools.product((4, 6, 24), (1, 3, 4), (0, 1), (None, 2, 3)):
        train = TrainConfig(global_batch=batch, micro_batch=micro)
        config = Config(train=train, parallel=ParallelConfig(zero=zero, shard=shard))  # type: ignore[arg-type]
        problems = resolve(config, {}, ranks).problems
        if len(problems) == 1 and problems[0].where == "train.global_batch, train.micro_batch":
            found += 1
            ((_, *values),) = ADVICE.findall(problems[0].remedy)
            for value in filter(None, values):
                better = replace(config, train=replace(train, global_batch=int(value)))
                assert not resolve(better, {}, ranks).problems
    assert found


def test_near() -> None:
    assert near("x", 5, lambda n: 12 % n == 0) == "x = 4 or 6"
    assert near("x", 1, lambda n: n % 2 == 0) == near("x", 1, unit=2) == "x = 2"
    assert near("x", 8, unit=4) == "x = 4 or 12" and near("x", 9, unit=4) == "x = 8 or 12"
    assert near("x", 10**6, lambda n: n == 1) == "x = 1"
    assert near("x", 20, lambda n: 12 % n == 0) == "x = 12"


small = st.integers(-1, 9)


@given(
    model=st.builds(
        ModelConfig, arch=st.sampled_from(["llama", "gpt2"]), layers=small, width=small, heads=small,
        kv_heads=st.none() | small, ffn=st.none() | small, vocab=small, seq_len=small,
        tied=st.none() | st.booleans(),
    ),
    parallel=st.builds(
        ParallelConfig, dp=st.none() | small, tp=st.none() | small, pp=st.none() | small,
        zero=st.sampled_from([0, 1, 2, 3]), shard=st.none() | small, sequence=st.booleans(),
    ),
    train=st.builds(TrainConfig, steps=small, global_batch=st.none() | small, micro_batch=small, seed=small),
    ranks=st.integers(1, 12),
)  # fmt: skip
@settings(deadline=None)
def test_any_integers_are_judged_and_none_breaks_the_judge(
    model: ModelConfig, parallel: ParallelConfig, train: TrainConfig, ranks: int
) -> None:
    config = Config(model=model, parallel=parallel, train=train)
    given_fields = {f"model.{field.name}": getattr(model, field.name) for field in fields(model)}
    resolved = resolve(config, given_fields, ranks)
    problems = resolved.problems + validate(resolved.config, ranks, resolved.doubtful)
    for problem in problems:
        assert all(problem)
    if not problems:
        c = resolved.config
        assert c.parallel.dp and c.parallel.tp and c.parallel.pp and c.parallel.shard and c.train.global_batch
        assert c.parallel.dp * c.parallel.tp * c.parallel.pp == ranks
        assert c.model.heads % c.parallel.tp == 0 and c.model.width % c.model.heads == 0
        assert c.train.global_batch % (c.parallel.dp * c.train.micro_batch) == 0


def test_no_layout_names_the_sizes_that_have_one() -> None:
    for ranks, sizes in ((6, "4 or 8"), (5, "4 or 8"), (3, "2 or 4")):
        with pytest.raises(MinitrainError, match=f"start {sizes} ranks"):
            prepare(["--train.global_batch", "8"], ranks)
