"""Arguments and TOML become one configuration, the same on every rank and after every way through text."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minitrain.arguments import COMMANDS, parse
from minitrain.config import Config, OptimConfig, RunConfig
from minitrain.config_text import from_json, to_json, to_toml
from minitrain.fields import known_fields, nearest, sections
from minitrain.settings import Settings, read_settings


def settings(line: str) -> Settings:
    result = read_settings(parse(line.split()))
    assert not result.problems
    return result


def test_every_field_has_an_option_with_help() -> None:
    names = known_fields()
    assert len(names) == sum(len(fields(record)) for record in sections().values()) - (len(sections()) - 1)
    for name, field in names.items():
        assert field.help, f"the comment after {name} in config.py"


@pytest.mark.parametrize("line, name, value", [
    ("--model.layers 3", "model.layers", 3),
    ("--model.layers=3", "model.layers", 3),
    ("train --model.layers 3", "model.layers", 3),
    ("--model.layers 2 --model.layers 3", "model.layers", 3),
    ("--model.tied true", "model.tied", True),
    ("--parallel.sequence", "parallel.sequence", True),
    ("--data.shuffle false", "data.shuffle", False),
    ("--optim.lr 1", "optim.lr", 1.0),
    ("--optim.lr .5e-3", "optim.lr", 0.0005),
    ("--optim.min_lr -1e-3", "optim.min_lr", -0.001),
    ("--optim.betas 0.8 .9", "optim.betas", (0.8, 0.9)),
    ("--optim.betas=[0.8,0.9]", "optim.betas", (0.8, 0.9)),
    ("--parallel.zero 2", "parallel.zero", 2),
    ("--precision fp64", "precision", "fp64"),
    ("--data.path 007", "data.path", "007"),
    ("--data.path true", "data.path", "true"),
    ("--run.export_hf", "run.export_hf", True),
    ("--run.export_hf false", "run.export_hf", False),
    ("--run.export_hf out", "run.export_hf", "out"),
])  # fmt: skip
def test_values_of_the_command_line(line: str, name: str, value: Any) -> None:
    config = settings(line).config
    section, _, field = name.rpartition(".")
    read = getattr(getattr(config, section) if section else config, field)
    assert read == value and type(read) is type(value)


def test_defaults_then_toml_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'precision = "fp64"\n[model]\nlayers = 3\nwidth = 64\n[optim]\nlr = 1\nbetas = [0.5, 0.6]\n'
    )
    result = settings(f"--config {file} --model.layers 5")
    assert result.config.model.layers == 5
    assert result.config.model.width == 64
    assert result.config.model.heads == Config().model.heads
    assert result.config.optim == replace(OptimConfig(), lr=1.0, betas=(0.5, 0.6))
    assert result.config.precision == "fp64"
    assert set(result.given) == {"precision", "model.layers", "model.width", "optim.lr", "optim.betas"}


def test_a_wrong_value_of_the_file_does_not_matter_where_the_command_line_has_a_right_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\nlayers = "many"\n')
    assert settings(f"--config {file} --model.layers 5").config.model.layers == 5


def test_text_and_back() -> None:
    for config in (
        Config(),
        Config(optim=OptimConfig(betas=(0.5, 1 / 3)), run=RunConfig(export_hf="x", dir="é")),
    ):
        assert from_json(to_json(config)) == config
        tables = tomllib.loads(to_toml(config))
        betas = config.optim.betas
        assert tables["optim"].get("betas") == (None if betas is None else list(betas))
        assert "kv_heads" not in tables["model"], "None is left out"


def test_toml_of_a_configuration_reads_as_that_configuration(tmp_path: Path) -> None:
    config = settings("--model.arch gpt2 --optim.lr 0.1 --optim.eps 1e-7 --run.export_hf").config
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert settings(f"--config {tmp_path / 'again.toml'}").config == config


@pytest.mark.parametrize("written, meant", [
    ("lr", "optim.lr"),
    ("model.layer", "model.layers"),
    ("modle.layers", "model.layers"),
    ("zeros", "parallel.zero"),
    ("parallel.TP", "parallel.tp"),
    ("trainsteps", "train.steps"),
    ("model.schedule", "optim.schedule"),
    ("paralel.schedule", "parallel.schedule"),
    ("run.telescope", None),
    ("train.epochs", None),
    ("model.hidden_size", None),
    ("x", None),
])  # fmt: skip
def test_nearest_name(written: str, meant: str | None) -> None:
    assert nearest(written, known_fields()) == meant


def test_nearest_command() -> None:
    assert nearest("genrate", COMMANDS) == "generate"
    assert nearest("chart", COMMANDS) is None


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.sampled_from([f"--{name}" for name in known_fields()]), words), max_size=6))
def test_no_line_is_more_than_refused(argv: list[str]) -> None:
    """Whatever is typed after `train`: a configuration and perhaps problems, and never an exception."""
    argv = [word for word in argv if not word.startswith("--config")]
    result = read_settings(parse(["train", *argv]))
    assert isinstance(result.config, Config)
