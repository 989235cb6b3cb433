"""Every fault that a run may meet, put into a real one. What must hold after each is in `check_end`; and
begun again by the same command, as often as it takes, the run comes to the same numbers and weights, bit for
bit, as one that nothing happened to.

Faults of a hang, of ranks that disagree, of launchers and of replicas are in test_watchdog.py and
test_replicas.py; damaged checkpoints in test_hostile_checkpoints.py; kills at random in test_kills.py.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from breakable import FOUR, PREFIX, STEPS, THREADS, Result, Training, check_end, only_error, same

Unbroken = Callable[[str, int], Result]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The result of a run that nothing happens to, by its arguments."""

    @cache
    def result(arguments: str, ranks: int) -> Result:
        return Training(tmp_path_factory.mktemp("unbroken"), arguments, ranks).finish()

    return result


def test_the_numbers_depend_on_the_seed(tmp_path: Path, unbroken: Unbroken) -> None:
    """Else that all runs end alike would mean nothing."""
    other = Training(tmp_path, f"{THREADS} --train.seed 1", 1).finish()
    assert other.lines != unbroken(THREADS, 1).lines and other.tensors != unbroken(THREADS, 1).tensors


def even_steps_before(step: int) -> list[int]:
    """The checkpoints that stay, where every second step is saved, when `step` comes to nothing."""
    return list(range(2, step, 2))[-2:]


# --- ranks that die


def test_ranks_that_die_at_any_place(tmp_path: Path, unbroken: Unbroken) -> None:
    """One start after another, each with the next fault; the first before there is a checkpoint."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 2")
    for fault, rank, step, code, says in [
        ("kill@forward", 1, 1, None, ""),
        ("kill@collective", 0, 3, None, ""),
        ("kill@message", 3, 5, None, ""),
        ("segfault@forward", 2, 6, None, ""),
        ("exit@forward", 3, 8, None, ""),
        (
            "memory@forward",
            1,
            10,
            2,
            "^rank 1: out of memory: Unable to allocate .* with shape .*; minitrain/step",
        ),
        ("raise@forward", 2, 12, 6, r"^rank 2: RuntimeError: a planted fault; minitrain/step.py:\d+; "),
    ]:
        check_end(training, training.start(fault, rank, step), code, says)
        assert training.saved() == even_steps_before(step)
    assert same(training.finish(), unbroken(FOUR, 4))


def test_numbers_that_are_not_finite(tmp_path: Path, unbroken: Unbroken) -> None:
    """Not a number, in the first gradient of each rank in turn: two of each stage. Nothing of it is saved."""
    training = Training(tmp_path, f"{THREADS} --run.save_every 2", 1)
    for rank, name in enumerate(["embedding", "layers.1.attn.norm", "embedding", "layers.1.attn.norm"]):
        step = 4 + 2 * rank
        says = rf"^rank {rank}: the gradient of {name} is not finite; step {step}; "
        check_end(training, training.start("nan", rank, step), 5, says)
        assert training.saved() == even_steps_before(step)
    assert same(training.finish(), unbroken(THREADS, 1))


def test_the_loss_scale_goes_on_where_it_was(tmp_path: Path, unbroken: Unbroken) -> None:
    """It overflows, falls, rises and overflows again; so it matters that its memory is in the checkpoint."""
    arguments = f"{THREADS} --precision fp16 --loss_scale.initial 16777216"
    arguments += " --loss_scale.backoff 0.125 --loss_scale.growth_interval 2"
    training = Training(tmp_path, f"{arguments} --run.save_every 1", 1)
    for step in (4, 7, 9):  # each time after one good step of the two that are waited for
        check_end(training, training.start("exit@forward", 0, step))
    result = training.finish()
    assert same(result, unbroken(arguments, 1))
    assert [line["step"] for line in result.lines if line["skipped"]] == [1, 2, 5, 10]


# --- ranks that die while a checkpoint is written


BACKGROUND = "--run.background true"
MODES = ["", pytest.param(BACKGROUND, marks=pytest.mark.long)]


@pytest.mark.parametrize("mode", MODES)
def test_death_between_any_two_parts_of_a_checkpoint(mode: str, tmp_path: Path, unbroken: Unbroken) -> None:
    """The one before it stays, or it is complete. Every step is saved; a start, a fault, and so on."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 1 {mode}")
    deaths = {
        "create": 0,
        "write": 3,
        "flush": 1,
        "digest": 2,
        "manifest": 0,
        "rename": 0,
        "latest": 0,
        "prune": 0,
    }
    for step, (place, rank) in enumerate(deaths.items(), start=2):
        check_end(training, training.start(f"kill@{place}", rank, step))
        if mode:  # the checkpoint at hand may be the one of the step before
            continue
        there = {path.name for path in training.checkpoints.iterdir()}
        before, now = f"step-{step - 1:08}", f"step-{step:08}"
        if place == "latest":
            assert {before, now} < there
            assert (training.checkpoints / "latest").read_text() == f"{before}\n", (
                "which is of no consequence"
            )
        elif place == "prune":
            assert {before, now} < there and any(name.endswith(".deleting") for name in there)
        else:
            assert before in there and len(list(training.checkpoints.glob(f"{now}.*.partial"))) == 1
            assert now not in there
    assert same(training.finish(), unbroken(FOUR, 4))


def test_errors_of_the_thread_that_writes_are_the_rank_s(tmp_path: Path, unbroken: Unbroken) -> None:
    """They end the run as if they had happened in a step."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 2 {BACKGROUND}")
    says = r"^rank 3: out of memory: .*; minitrain/checkpoint/saving.py:\d+; "
    check_end(training, training.start("memory@write", 3, 4), 2, says)
    says = r"^rank 0: RuntimeError: a planted fault; minitrain/checkpoint/saving.py:\d+; "
    check_end(training, training.start("raise@manifest", 0, 8), 6, says)
    assert same(training.finish(), unbroken(FOUR, 4))


# --- signals


def test_signals_end_a_run_between_two_steps(tmp_path: Path, unbroken: Unbroken) -> None:
    """Whether one rank gets it, even twice in a moment, or the launcher passes it on to all; while a
    checkpoint is written, too.
    """
    training = Training(tmp_path, f"{FOUR} --run.save_every 4")
    told = (
        rf"^told to stop after step (\d+) of {STEPS}; checkpoint run/checkpoints/step-(\d+); start it again "
    )
    for fault, rank, step in [("twice@begin", 2, 2), ("launcher@begin", 1, 5), ("term@manifest", 0, 8)]:
        done = training.start(fault, rank, step)
        check_end(training, done, 75, told)
        match = re.search(told, only_error(done))
        assert match and int(match[1]) == int(match[2]) == training.saved()[-1]
        assert step <= training.saved()[-1] < step + 3
    assert same(training.finish(), unbroken(FOUR, 4))


def test_a_second_signal_is_not_waited_for(tmp_path: Path, unbroken: Unbroken) -> None:
    """All ranks but one are in a collective, and no step will ever end."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 2")
    done = training.start("others@collective", 1, 4)
    check_end(training, done)
    assert "minitrain: told to stop a second time, and ends at once" in done.stderr
    assert training.saved() == [2]
    assert same(training.finish(), unbroken(FOUR, 4))


# --- disks


@pytest.mark.parametrize("mode", MODES)
def test_one_checkpoint_that_cannot_be_written(mode: str, tmp_path: Path, unbroken: Unbroken) -> None:
    """No rank goes on as if it were there, and training goes on. The last one is another matter."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 5 --run.keep 9 {mode}")
    done = training.start("full@write", 3, 5)
    assert done.returncode == 0 and PREFIX not in done.stderr
    what = "no checkpoint of step 5: the checkpoint cannot be written (No space left on device); "
    assert re.search(
        rf"warning: {re.escape(what)}run/checkpoints/step-00000005\.\w+\.partial; free space", done.stdout
    )
    assert training.saved() == [10, 12]
    assert same(training.finish(), unbroken(FOUR, 4))

    shutil.rmtree(training.checkpoints / "step-00000012")
    check_end(
        training, training.start("full@digest", 2, 12), 4, r"cannot be written \(No space left on device\)"
    )
    assert training.saved() == [10] and not list(training.checkpoints.glob("*.partial"))
    assert same(training.finish(), unbroken(FOUR, 4))


def test_a_checkpoint_that_is_complete_is_not_given_up(tmp_path: Path, unbroken: Unbroken) -> None:
    """Where an old one cannot be removed, or `latest` not be written, the new one is there all the same."""
    training = Training(tmp_path, f"{THREADS} --run.save_every 2", 1)
    for fault in ("full@latest", "full@prune"):
        done = training.start(fault, 0, STEPS)
        assert done.returncode == 0, done.stderr
        assert (
            "warning: the newest checkpoint is complete, but the directory cannot be flushed, an old one "
            "removed, or latest written (No space left on device)" in done.stdout
        )
        assert "no checkpoint" not in done.stdout and training.saved()[-1] == STEPS
        assert same(training.finish(), unbroken(THREADS, 1))
        shutil.rmtree(tmp_path / "run")


def test_files_that_may_not_grow(tmp_path: Path, unbroken: Unbroken) -> None:
    """They stand for a disk without space. Three failures in a row are the end."""
    training = Training(tmp_path, f"{THREADS} --run.save_every 2", 1)
    check_end(training, training.start("term@begin", 0, 3), 75)
    saved = training.saved()
    limited = training.start("limit@begin", 0, saved[-1] + 1)
    check_end(training, limited, 4, r"cannot be written \(File too large\); run/checkpoints/step-")
    assert limited.stdout.count("warning: no checkpoint of step") == 2
    assert training.saved() == saved and not list(training.checkpoints.glob("*.partial"))
    assert same(training.finish(), unbroken(THREADS, 1))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 kB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("to mount a file system is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(disk: Path, unbroken: Unbroken) -> None:
    """With room for two checkpoints and a half, then for all three."""
    training = Training(disk, f"{THREADS} --run.save_every 2 --run.keep 9", 1)
    says = r"cannot be written \(No space left on device\); run/checkpoints/step-"
    check_end(training, training.start(), 4, says)
    assert training.saved() and not list(training.checkpoints.glob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    assert same(training.finish(), unbroken(THREADS, 1))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = training.start("", more="--train.steps 13")
    assert only_error(done).startswith("cannot lock run/.lock: Read-only file system; run.dir; ")
    assert done.returncode == 2


def test_what_is_removed_while_a_run_lasts(tmp_path: Path, unbroken: Unbroken) -> None:
    """All of its checkpoints, or its log: training goes on, and begins anew what is gone."""
    training = Training(tmp_path, f"{THREADS} --run.save_every 2", 1)
    done = training.start("remove@begin", 0, 6)
    assert (
        done.returncode == 0
        and training.saved() == [10, 12]
        and same(training.finish(), unbroken(THREADS, 1))
    )
    shutil.rmtree(tmp_path / "run")
    done = training.start("remove@write", 0, 6)
    assert done.returncode == 0 and "warning: no checkpoint of step 6: " in done.stdout
    assert training.saved() == [10, 12] and same(training.finish(), unbroken(THREADS, 1))
    shutil.rmtree(tmp_path / "run")
    done = training.start("log@begin", 2, 6)
    assert done.returncode == 0 and PREFIX not in done.stderr
    result, whole = training.result(), unbroken(THREADS, 1)
    assert result.lines == whole.lines[5:] and result.tensors == whole.tensors


# --- data


def test_data_that_become_shorter(tmp_path: Path) -> None:
    """While they are mapped: to touch what is gone would be a signal and not an error."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 2")
    says = r"^rank \d: the file has 4096 bytes, but had \d+ when the run began; text.txt; "
    check_end(training, training.start("shrink@begin", 3, 4), 3, says)
    says = r"^the data are not those of the checkpoint: \d+ tokens, not \d+; text.txt; give the same data"
    check_end(training, training.start(), 3, says)


# --- two jobs


def test_a_second_job_in_the_same_directory(tmp_path: Path, unbroken: Unbroken) -> None:
    """It is told who is in it; the first notices nothing."""
    training = Training(tmp_path, f"{FOUR} --run.save_every 2")
    done = training.start("second@begin", 0, 5)
    assert done.returncode == 0, done.stderr
    (second,) = [line for line in done.stdout.splitlines() if line.startswith("the second job: ")]
    who = r"another job writes to run: process (\d+) on \S+; run.dir; wait for its end"
    assert re.match(f"the second job: 2 {PREFIX}{who}", second)
    assert same(training.result(), unbroken(FOUR, 4))
