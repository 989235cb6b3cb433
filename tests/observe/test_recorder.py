"""What a run leaves on disk and on the screen."""

import io
import json
import math
import os
import resource
import sys
import tempfile
import termios
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from minitrain.arguments import parse
from minitrain.config import Config, RunConfig, TrainConfig
from minitrain.errors import ConfigError
from minitrain.observe.progress import Bar, Lines, Quiet, make_progress
from minitrain.observe.recorder import Recorder, SilentRecorder, StepMetrics, step_line
from minitrain.resolve import resolve
from minitrain.settings import read_settings

KEYS = {
    "step", "loss", "grad_norm", "lr", "tokens", "seconds", "tokens_per_second", "mfu", "loss_scale",
    "skipped", "memory_bytes", "comm_bytes",
}  # fmt: skip
METRICS = StepMetrics(
    step=1, loss=math.pi, grad_norm=1 / 3, lr=1e-3, tokens=1024, seconds=0.25, loss_scale=1.0, skipped=False,
    memory_bytes={"parameters": 8}, comm_bytes={"tp": {"all_reduce": 4}},
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Config:
    run = RunConfig(dir=str(tmp_path / "run"), progress="plain")
    return resolve(Config(run=run, train=TrainConfig(steps=3, global_batch=8)), {}, 1).config


@pytest.fixture
def recorder(config: Config) -> Recorder:
    recorder = Recorder(["a notice"])
    recorder.begin(config)
    return recorder


@contextmanager
def no_file_longer_than(n_bytes: int) -> Iterator[None]:
    """Stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines_of(directory: Path) -> list[dict[str, object]]:
    return [
        json.loads(line, parse_constant=pytest.fail)
        for line in (directory / "metrics.jsonl").read_text().splitlines()
    ]


def test_every_call_leaves_one_whole_line_at_once(recorder: Recorder) -> None:
    for step in (1, 2, 3):
        recorder.step(METRICS._replace(step=step))
        assert [line["step"] for line in lines_of(recorder.directory)] == list(range(1, step + 1))
    recorder.evaluation(3, 1.5)
    *steps, evaluation = lines_of(recorder.directory)
    assert all(set(line) == KEYS for line in steps)
    assert evaluation == {"step": 3, "eval_loss": 1.5}


def test_numbers_keep_all_their_bits(recorder: Recorder) -> None:
    recorder.step(METRICS)
    (line,) = lines_of(recorder.directory)
    assert line["loss"] == math.pi and line["grad_norm"] == 1 / 3
    assert line["tokens_per_second"] == 8 * 64 / 0.25
    assert line["mfu"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null(recorder: Recorder, value: float) -> None:
    recorder.step(METRICS._replace(loss=value, grad_norm=value, skipped=True))
    recorder.evaluation(1, value)
    step, evaluation = lines_of(recorder.directory)
    assert step["loss"] is None and step["grad_norm"] is None and step["skipped"] is True
    assert evaluation["eval_loss"] is None


def test_config_toml_repeats_the_run_elsewhere(recorder: Recorder, config: Config) -> None:
    tables = tomllib.loads((recorder.directory / "config.toml").read_text())
    assert "dir" not in tables["run"], "the run's directory is where the file is"
    said = read_settings(parse(["--config", str(recorder.directory / "config.toml")]))
    assert said.problems == []
    assert resolve(said.config, said.given, 1).config == replace(config, run=replace(config.run, dir=None))


def test_config_toml_repeats_the_run_from_any_directory(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = replace(config.run, dir="run", init_from="weights")
    Recorder().begin(replace(config, run=run, data=replace(config.data, path="../text")))
    tables = tomllib.loads(Path("run/config.toml").read_text())
    assert tables["run"]["init_from"] == str(tmp_path / "weights")
    assert tables["data"]["path"] == f"{tmp_path}/../text"


def test_a_directory_with_a_run_is_left_as_it_is(config: Config, recorder: Recorder) -> None:
    recorder.step(METRICS)
    before = {path: path.read_bytes() for path in recorder.directory.iterdir()}
    with pytest.raises(ConfigError, match="holds a run already"):
        Recorder().begin(config)
    assert {path: path.read_bytes() for path in recorder.directory.iterdir()} == before


def test_a_directory_that_cannot_be_made_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        Recorder().begin(replace(config, run=replace(config.run, dir=str(tmp_path / "file" / "run"))))


@pytest.mark.parametrize("before", [{}, {"config.toml": "[train]", "notes": ""}])
def test_a_start_that_fails_leaves_what_was_there(
    before: dict[str, str], config: Config, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name, text in before.items():
        (tmp_path / "run" / name).write_text(text)
    with no_file_longer_than(0), pytest.raises(ConfigError, match=r"cannot write .*/run/.*: .* space"):
        Recorder().begin(config)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == before


def test_a_disk_that_fills_up_is_named(recorder: Recorder) -> None:
    for call, name in [
        (lambda: recorder.step(METRICS), "metrics.jsonl"),
        (lambda: recorder.evaluation(1, 1.5), "metrics.jsonl"),
        (lambda: recorder.sample("text"), "samples.txt"),
    ]:
        with no_file_longer_than(0), pytest.raises(ConfigError) as caught:
            call()
        ((what, _, remedy),) = caught.value.problems
        assert what.startswith(f"cannot write {recorder.directory / name}: ") and "space" in remedy


def test_what_is_printed(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.step(METRICS)
    recorder.evaluation(1, 1.23456)
    recorder.sample("In the\nbeginning \x1b[31m")
    recorder.end()
    out, err = capsys.readouterr()
    assert err == ""
    assert "1/3  loss  3.1416  norm    0.333  lr 1.00e-03      2,048 tok/s\n" in out
    assert "held-out loss 1.2346 nats per token\n" in out
    assert "  In the\n  beginning \ufffd[31m\n" in out, "a sample cannot command the terminal"
    assert str(recorder.directory) in out.splitlines()[-1]
    assert (recorder.directory / "samples.txt").read_text() == "In the\nbeginning \x1b[31m\n"


def test_columns_stay_in_place() -> None:
    lines = [step_line(METRICS._replace(step=step), 1000, speed) for step, speed in ((1, 9.0), (1000, 1e6))]
    assert len({line.index("loss") for line in lines}) == len({len(line) for line in lines}) == 1
    assert "skipped" in step_line(METRICS._replace(skipped=True), 10, None)


def test_the_other_ranks_write_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = SilentRecorder()
    recorder.begin(config)
    recorder.step(METRICS)
    recorder.evaluation(1, 1.0)
    recorder.sample("text")
    recorder.end()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


@contextmanager
def a_stream(kind: str) -> Iterator[TextIO]:
    """A terminal of so many rows and columns, or else something that is none."""
    if kind == "no file":
        yield io.StringIO()
        return
    if kind == "file":
        with tempfile.TemporaryFile("w") as file:
            yield file
        return
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, tuple(map(int, kind.split("x"))))
    with open(slave, "w") as terminal:
        yield terminal
    os.close(master)


@pytest.mark.parametrize("kind, environ, stream, display", [
    ("auto", {}, "24x80", Bar),
    ("auto", {}, "0x0", Lines),
    ("auto", {}, "24x0", Lines),
    ("auto", {}, "0x80", Lines),
    ("auto", {}, "file", Lines),
    ("auto", {}, "no file", Lines),
    ("auto", {"OMPI_COMM_WORLD_SIZE": "8"}, "24x80", Lines),
    ("auto", {"SLURM_JOB_ID": "1"}, "24x80", Lines),
    ("auto", {"CI": "true"}, "24x80", Lines),
    ("bar", {"CI": "true"}, "file", Bar),
    ("plain", {}, "24x80", Lines),
    ("none", {}, "24x80", Quiet),
])  # fmt: skip
def test_a_bar_only_where_somebody_watches(
    kind: str, environ: dict[str, str], stream: str, display: type
) -> None:
    with a_stream(stream) as terminal:
        progress = make_progress(kind, 3, environ, terminal)
        assert type(progress) is display
        progress.end()


def test_quiet_hides_steps_only(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Quiet()
    progress.step("a step")
    progress.note("a validation")
    assert capsys.readouterr().out == "a validation\n"


def test_the_bar_shows_the_step_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(2)
    for step in (1, 2):
        bar.step(f"{step}/2  loss {step}.5")
    bar.end()
    assert "loss 2.5" in capsys.readouterr().err


def test_a_terminal_that_lacks_a_letter(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    recorder.sample("é☃")
    recorder.sample("plain")
    assert b"??" in raw.getvalue() and b"plain" in raw.getvalue()


def test_a_closed_standard_output_ends_nothing(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        for step in (1, 2, 3):
            recorder.step(METRICS._replace(step=step))
    assert len(lines_of(recorder.directory)) == 3
