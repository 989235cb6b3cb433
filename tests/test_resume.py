"""What a run takes over from the checkpoint that it goes on from, and what it refuses."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

import minitrain.checkpoint.saving as saving
import minitrain.checkpoint.state as state
import minitrain.cli
from minitrain.arguments import parse
from minitrain.checkpoint.catalogue import checkpoints_in, set_aside
from minitrain.checkpoint.manifest import read_manifest, to_text
from minitrain.checkpoint.parts import parts_to_write
from minitrain.cli import main
from minitrain.config import Config
from minitrain.errors import CheckpointError, ConfigError, MinitrainError
from minitrain.observe.run_directory import locked
from minitrain.prepare import check_settings
from minitrain.resume import continued, find_start
from minitrain.settings import read_settings

SIZES = "--model.layers 1 --model.width 16 --model.heads 2 --model.seq_len 8 --train.global_batch 4"
SHORT = f"{SIZES} --train.micro_batch 2 --run.sample_tokens 0 --data.holdout 0 --run.progress none"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, with checkpoints of steps 2 and 4 of 4; `text.txt`, its data."""
    place = tmp_path_factory.mktemp("runs")
    (place / "text.txt").write_text("And the earth was without form, and void. " * 20)
    options = f"--data.path {place}/text.txt --train.steps 4 --run.save_every 2 --optim.lr 0.01"
    assert main(f"{SHORT} {options} --run.dir {place}/run --run.export_hf".split()) == 0
    return place


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy, which is the current directory; the data stay where they were."""
    shutil.copytree(runs / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def resolved(line: str, n_processes: int = 1) -> tuple[Config, list[str]]:
    """What a command line would run, and the notices."""
    settings = read_settings(parse(line.split()))
    start = find_start(settings)
    assert start
    return check_settings(continued(settings, start, n_processes), n_processes, start)


def metrics(run: str) -> list[tuple[int, float]]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_what_is_not_named_is_the_checkpoint_s(place: Path) -> None:
    config, notices = resolved("--run.resume run/checkpoints/step-00000002 --train.steps 9")
    assert (config.model.width, config.optim.lr, config.run.save_every) == (16, 0.01, 2)
    assert config.train.steps == 9 and config.run.dir == str(place / "run")
    assert notices[1:] == ["train.steps is 9, was 4 up to step 2"]
    _, notices = resolved("--run.resume run/checkpoints/step-00000002 --run.keep 5")
    assert notices[1:] == ["run.keep is 5, was 2 up to step 2"]


def test_a_run_may_go_on_on_another_machine(place: Path) -> None:
    """What its devices were, and what computed there, is not taken over."""
    settings = read_settings(parse(["--run.resume", "run/checkpoints/step-00000002"]))
    start = find_start(settings)
    assert start
    of_gpus = {"backend": "cupy", "collectives": "nccl", "gemm": "gemmex", "attention": "flash"}
    saved = replace(start.manifest.config, **of_gpus)
    start = start._replace(manifest=replace(start.manifest, config=saved))
    config = continued(settings, start, 1).config
    assert {getattr(config, name) for name in of_gpus} == {"auto"}


def test_what_is_named_counts_and_is_told(place: Path) -> None:
    _, notices = resolved("--run.resume auto --run.dir run --optim.lr 0.002 --precision bf16 --train.seed 3")
    assert notices[0] == "goes on from step 4: run/checkpoints/step-00000004"
    assert sorted(notices[1:]) == [
        "optim.lr is 0.002, was 0.01 up to step 4",
        "precision is bf16, was fp32 up to step 4",
        "train.seed is 3, was 0 up to step 4",
    ]


@pytest.mark.parametrize("ranks, said, expected", [
    (1, "", (1, 1, 1)),
    (4, "", (2, 2, 1)),  # chosen anew: one layer has one stage
    (2, "--parallel.tp 2", (1, 2, 1)),
])  # fmt: skip
def test_the_layout_is_the_checkpoint_s_only_where_it_fits(
    ranks: int, said: str, expected: tuple[int, int, int], place: Path
) -> None:
    parallel = resolved(f"--run.resume auto --run.dir run {said}", ranks)[0].parallel
    assert (parallel.dp, parallel.tp, parallel.pp) == expected


def files_below(place: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize("line, code, parts", [
    ("--run.resume auto", 2, ("run.resume auto looks for checkpoints in run.dir, which is not given",)),
    ("--run.resume auto --run.dir run --train.steps 3", 2, ("train.steps is 3, but the checkpoint has",)),
    ("--run.resume auto --run.dir run --model.width 32", 4, ("model.width is 32, but 16 in the checkpoint",)),
    ("--run.resume auto --run.dir run --optim.name lion", 4, ("optim.name is lion, but adamw",)),
    (
        "--run.resume auto --run.dir run --optim.name lion --model.heads 4", 4,
        ("2 problems in the checkpoint", "model.heads is 4, but 2", "optim.name is lion"),
    ),
    ("--run.resume run/hf", 4, ("it has no manifest.json", "run.init_from")),
    ("--run.resume nowhere", 4, ("there is no checkpoint; nowhere;",)),
    ("--run.dir run", 2, ("run holds a run already", "--run.resume auto")),
    ("--run.dir run --run.resume run/checkpoints/step-00000003", 4, ("there is no checkpoint",)),
])  # fmt: skip
def test_refusals(
    line: str, code: int, parts: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(place)
    assert main(line.split()) == code
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert files_below(place) == before


def test_from_an_earlier_checkpoint_nothing_later_is_lost(place: Path) -> None:
    before = metrics("run")
    assert main("--run.resume run/checkpoints/step-00000002 --run.progress none".split()) == 0
    assert metrics("run") == before
    assert [path.name for path in checkpoints_in(place / "run" / "checkpoints")] == [
        "step-00000002",
        "step-00000004",
    ]
    assert (place / "run" / "checkpoints" / "step-00000004.superseded-1" / "manifest.json").exists()
    cut = [
        json.loads(line)["step"] for line in (place / "run" / "metrics.cut.jsonl").read_text().splitlines()
    ]
    assert cut == [3, 4]


@pytest.mark.parametrize("name", ["step-00000004.superseded-1", "step-00000003"])
def test_a_run_goes_on_only_from_what_is_still_a_part_of_it(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set aside or renamed, a checkpoint can begin a branch."""
    renamed = (place / "run/checkpoints/step-00000004").rename(place / "run/checkpoints" / name)
    before = files_below(place)
    assert main(f"--run.resume {renamed}".split()) == 2
    err = capsys.readouterr().err
    assert f"{renamed} is a checkpoint of step 4, but not step-00000004; run.resume, run.dir; " in err
    assert files_below(place) == before
    assert main(f"--run.resume {renamed} --run.dir branch --train.steps 5 --run.progress none".split()) == 0
    assert [step for step, _ in metrics("branch")] == [5]


def test_later_checkpoints_are_set_aside_the_newest_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two, the run has what the next start needs to do the rest."""
    directory = place / "run" / "checkpoints"
    shutil.copytree(directory / "step-00000004", directory / "step-00000006")
    moved, rename = [], Path.rename

    def once(path: Path, target: Path) -> Path:
        if moved:
            raise OSError
        moved.append(path.name)
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(Path, "rename", once)
        set_aside(directory, 2)
    assert moved == ["step-00000006"]
    assert [path.name for path in set_aside(directory, 2)] == ["step-00000004.superseded-1"]
    assert (directory / "latest").read_text() == "step-00000002\n"


@pytest.mark.parametrize("module", [saving, state])
def test_what_no_rank_writes_is_no_checkpoint(
    module: object,
    place: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of weights or moments. Files begin as zeros, and the checksums of zeros would be right."""
    monkeypatch.setattr(module, "parts_to_write", lambda unit, grid: list(parts_to_write(unit, grid))[1:])
    line = f"{SHORT} --data.path {runs}/text.txt --train.steps 3 --run.dir new --run.save_every 1"
    assert main(line.split()) == 6
    assert re.search(r"error: \d+ of 37008 weights and moments were written; ", capsys.readouterr().err)
    assert not checkpoints_in(place / "new" / "checkpoints")


def test_the_run_is_locked_before_its_checkpoints_are_looked_at(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(place / "run" / "checkpoints" / "step-00000004")
    (place / "run" / "checkpoints" / "step-00000002" / "manifest.json").write_text("half of")
    with locked(place / "run"):
        assert main("--run.resume auto --run.dir run".split()) == 2
        assert "another job writes to run: process" in capsys.readouterr().err
    assert not (place / "run" / ".lock").exists()


def test_a_lock_is_that_of_the_file_that_has_the_name(tmp_path: Path) -> None:
    """Whoever waited for a lock may get that of a file which its job has removed meanwhile."""
    flock, removed = fcntl.flock, []

    def slow(file: IO[str], how: int) -> None:
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        flock(file, how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fcntl, "flock", slow)
        with locked(tmp_path), pytest.raises(ConfigError, match="another job"), locked(tmp_path):
            raise AssertionError("two jobs in one directory")


def test_a_lock_of_another_job_stays(tmp_path: Path) -> None:
    """The directory was moved, and another job has begun in a new one of that name."""
    run = tmp_path / "run"
    run.mkdir()
    with ExitStack() as first:
        first.enter_context(locked(run))
        run.rename(tmp_path / "moved")
        run.mkdir()
        with locked(run):
            first.close()
            with pytest.raises(ConfigError, match="another job"), locked(run):
                raise AssertionError("two jobs in one directory")


def test_a_lock_that_cannot_be_removed_hides_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system that has become read-only, for instance."""
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".lock":
            raise PermissionError
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(minitrain.cli, "run", lambda *_: 1 / 0)
    assert main("--run.resume auto --run.dir run --train.steps 5".split()) == 6
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_a_branch_leaves_the_run_as_it_was(place: Path) -> None:
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert main("--run.resume run/checkpoints/step-00000002 --run.dir branch --optim.lr 0.5".split()) == 0
    assert {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()} == before
    assert [step for step, _ in metrics("branch")] == [3, 4]


def test_what_else_lies_beside_weights_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on writes its own files anew; a branch finds a directory that is not its own."""
    (place / "run" / "hf" / "tokenizer.json").write_text("precious")
    (place / "branch" / "hf").mkdir(parents=True)
    (place / "branch" / "hf" / "weights.bin").write_text("precious")
    assert main("--run.resume auto --run.dir run --train.steps 5 --run.progress none".split()) == 0
    assert (place / "run" / "hf" / "tokenizer.json").read_text() == "precious"
    assert not (place / "run" / "hf.partial").exists()
    before = files_below(place)
    assert main("--run.resume run --run.dir branch --train.steps 6 --run.progress none".split()) == 4
    assert "the directory is not empty; branch/hf; give a new one: nothing is over" in capsys.readouterr().err
    assert files_below(place) == before


def test_checkpoints_without_their_log_are_a_run_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "run" / "checkpoints", place / "copy" / "checkpoints")
    before = files_below(place)
    assert main(f"{SHORT} --run.dir copy --train.steps 3".split()) == 2
    assert "copy holds a run already" in capsys.readouterr().err and files_below(place) == before


def test_checkpoints_that_are_no_directory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "new").mkdir()
    (place / "new" / "checkpoints").write_text("")
    assert main(f"{SHORT} --run.dir new --run.resume auto".split()) == 2
    assert "new/checkpoints is no directory; run.dir; choose another" in capsys.readouterr().err


def test_where_the_weights_go_is_the_run_s(place: Path, runs: Path) -> None:
    line = f"{SHORT} --data.path {runs}/text.txt --run.dir new --train.steps 2 --run.export_hf elsewhere"
    assert main(line.split()) == 0
    shutil.rmtree("elsewhere")
    assert main("--run.resume auto --run.dir new --train.steps 3 --run.progress none".split()) == 0
    assert Path("elsewhere/model.safetensors").exists() and not Path("new/hf").exists()
    assert main("--run.resume new --run.dir branch --train.steps 4 --run.progress none".split()) == 0
    assert Path("branch/hf/model.safetensors").exists()


def test_generate_takes_the_newest_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a run that went on after it had ended are in its checkpoints."""
    said = []
    assert main("--run.resume auto --run.dir run --train.steps 9 --optim.lr 0.3 --run.export_hf false "
                "--run.progress none".split()) == 0  # fmt: skip
    for what in ("run", "run/checkpoints/step-00000009", "run/hf"):
        capsys.readouterr()
        assert main(f"generate {what} --prompt And --tokens 9 --temperature 0".split()) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_a_run_that_is_at_its_end_writes_its_weights_once_more(place: Path) -> None:
    weights = (place / "run" / "hf" / "model.safetensors").read_bytes()
    (place / "run" / "hf" / "model.safetensors").unlink()
    before = metrics("run")
    assert main("--run.resume auto --run.dir run --run.progress none".split()) == 0
    assert metrics("run") == before
    assert (place / "run" / "hf" / "model.safetensors").read_bytes() == weights


def test_auto_begins_where_there_is_no_checkpoint(place: Path, runs: Path) -> None:
    line = f"{SHORT} --data.path {runs}/text.txt --train.steps 2 --run.dir new --run.resume auto"
    assert main(line.split()) == 0 and [step for step, _ in metrics("new")] == [1, 2]
    for name in ("checkpoints", "hf"):  # as if the run had died before the first
        shutil.rmtree(place / "new" / name)
    assert main(line.split()) == 0 and [step for step, _ in metrics("new")] == [1, 2]


def test_weights_of_a_run_without_checkpoints_are_not_overwritten(
    place: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would begin once more, and at its end they would be gone."""
    line = f"{SHORT} --data.path {runs}/text.txt --train.steps 1 --run.dir new --run.resume auto"
    line += " --run.keep 0 --run.export_hf"
    assert main(line.split()) == 0
    before = files_below(place)
    assert main(line.split()) == 4
    assert "the directory is not empty; new/hf; give a new one: nothing is over" in capsys.readouterr().err
    assert files_below(place) == before


def test_a_half_written_line_of_metrics_is_no_obstacle(place: Path) -> None:
    before = metrics("run")
    with (place / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert main("--run.resume auto --run.dir run --train.steps 5 --run.progress none".split()) == 0
    assert metrics("run")[:-1] == before and metrics("run")[-1][0] == 5
    assert '{"step": 5, "lo' in (place / "run" / "metrics.cut.jsonl").read_text()


@pytest.mark.parametrize("change", ["longer", "other", "shorter"])
def test_other_data(change: str, place: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (runs / "text.txt").read_text()
    changed = {"longer": text + "!", "other": text.replace("void", "full"), "shorter": text[:-1]}[change]
    (place / "other.txt").write_text(changed)
    line = "--run.resume auto --run.dir run --train.steps 5 --data.path other.txt --run.progress none"
    assert main(line.split()) == 3
    err = capsys.readouterr().err
    assert "the data are not those of the checkpoint" in err and "--run.accept_new_data true" in err
    assert main(f"{line} --run.accept_new_data true".split()) == 0
    assert f"other data from here on: {len(changed)} tokens, and {len(text)}" in capsys.readouterr().out


def test_an_unknown_version_says_so(place: Path) -> None:
    step = place / "run" / "checkpoints" / "step-00000004"
    manifest = replace(read_manifest(step), version=2)
    (step / "manifest.json").write_text(to_text(manifest))
    with pytest.raises(CheckpointError, match="is of version 2, and this minitrain reads version 1"):
        read_manifest(step)


def test_a_damaged_newest_one_is_not_passed_over(place: Path) -> None:
    """Going back further than the user knows would be a silent loss."""
    path = place / "run" / "checkpoints" / "step-00000004" / "manifest.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(
        MinitrainError, match=r"checksum.*; .*step-00000004.*; .*--run.resume .*step-00000002"
    ):
        resolved("--run.resume auto --run.dir run")
