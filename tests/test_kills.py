"""Kills at random moments, and what a power cut would leave."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from breakable import FOUR, LIMIT, Training, same
from kills import survive
from launch import run

MANY = 100_000
RUN, CHECKPOINTS, METRICS = "run", "run/checkpoints", "run/metrics.jsonl"
CALL = re.compile(
    r'\d+ +(?P<name>\w+)\((?:\w+<(?P<file>[^>]*)>)?(?:, )?(?:"(?P<path>[^"]*)")?(?P<rest>.*)\) += \d+'
)


@pytest.mark.parametrize("n_kills", [10, pytest.param(100, marks=pytest.mark.long)])
def test_a_run_survives_kills_at_random_moments(n_kills: int, tmp_path: Path) -> None:
    """Killed again and again, it comes to the same numbers and weights as a run that nobody disturbs. How far
    it comes meanwhile is a matter of luck: so it has an end only when all kills are behind it.
    """
    disturbed = training_in(tmp_path / "disturbed", MANY)
    counts = survive(disturbed, n_kills, seed=n_kills)
    print(dict(counts))
    assert counts["with a new checkpoint"] > n_kills // 3, "else next to nothing was put to the test"
    steps = max(disturbed.saved()) + 5
    left_alone = training_in(tmp_path / "left alone", steps)
    assert same(replace(disturbed, steps=steps).finish(), left_alone.finish())


def training_in(place: Path, steps: int) -> Training:
    """What a step does depends on how many there are to be by the learning rate alone, which is constant."""
    place.mkdir()
    arguments = "--run.save_every 2 --run.background true --optim.schedule constant --optim.warmup 1"
    return Training(place, f"{FOUR} {arguments}", steps=steps, limit=600)


def calls_of(training: Training) -> list[tuple[str, ...]]:
    """What the run asks the system for in its directory, in order: (make, path), (write, path),
    (fsync, path), (rename, from, to), (remove, path). Writes in a row are one.
    """
    log = training.place / "calls"
    names = "mkdir,mkdirat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
    strace = ["strace", "-f", "-y", "-s", "1000", "-e", f"trace={names}", "-o", str(log)]
    done = run([*strace, *training.command()], cwd=training.place, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    calls: list[tuple[str, ...]] = []
    for line in log.read_text(errors="replace").splitlines():
        match = CALL.match(line)
        call = match and understood(training.place, **match.groupdict(""))
        if call and call[1].startswith(RUN) and (call[0] != "write" or call not in calls[-1:]):
            calls.append(call)
    return calls


def understood(place: Path, name: str, file: str, path: str, rest: str) -> tuple[str, ...]:
    """`file` is what a descriptor stands for, a directory if there is a `path` in it too."""

    def relative(*parts: str) -> str:
        whole = Path(place, *parts)
        name = str(whole.relative_to(place)) if whole.is_relative_to(place) else str(whole)
        return re.sub(r"\.[0-9a-f]{8}\.partial", ".partial", name)  # the job's own number

    if name.startswith("mkdir"):
        return "make", relative(file, path)
    if name.startswith("rename"):
        return "rename", relative(file, path), relative(*re.findall(r'"([^"]*)"', rest))
    if name.startswith(("unlink", "rmdir")):
        return "remove", relative(file, path)
    return ("fsync" if name.endswith("sync") else "write"), relative(file)


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which shows system calls, is not installed"
)
def test_what_must_last_is_on_the_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    """Two checkpoints of which one is kept. Between `write` and the `rename` that makes it count each file
    and each directory is flushed; and the old one is touched only when the new one has its name for good.
    The lines of the steps before it are there first.
    """
    calls = calls_of(Training(tmp_path, "--run.save_every 1 --run.keep 1", ranks=1, steps=2))
    made = calls.index(("make", CHECKPOINTS))
    assert calls[made + 1] == ("fsync", RUN)
    for step in (1, 2):
        before = [call for call in calls[: calls.index(("make", partial(step)))] if METRICS in call[1]]
        assert before[-1] == ("fsync", METRICS) and before.count(("write", METRICS)) == step
    assert (
        written(1)
        == [call for call in calls[: calls.index(("make", partial(2)))] if CHECKPOINTS in call[1]][1:]
    )
    old = f"{CHECKPOINTS}/step-00000001"
    after = calls[calls.index(("make", partial(2))) :]
    renamed = [("rename", old, f"{old}.deleting"), ("fsync", CHECKPOINTS)]
    after = [call for call in after if CHECKPOINTS in call[1]]
    assert after[: len(written(2)) + 2] == written(2) + renamed
    assert {call[0] for call in after[len(written(2)) + 2 :]} == {"remove"}


def partial(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08}.partial"


def written(step: int) -> list[tuple[str, ...]]:
    """The calls by which a checkpoint is written."""
    here, files = partial(step), ("config.json", "model.safetensors", "state.safetensors")
    manifest, latest = f"{here}/manifest.json", f"{CHECKPOINTS}/latest"
    return [
        ("make", here),
        *(("write", f"{here}/{file}") for file in (*files, *files[1:])),  # headers first
        *(("fsync", f"{here}/{file}") for file in files),
        ("write", f"{manifest}.partial"),
        ("fsync", f"{manifest}.partial"),
        ("rename", f"{manifest}.partial", manifest),
        ("fsync", here),
        ("rename", here, here.removesuffix(".partial")),
        ("fsync", CHECKPOINTS),
        ("write", f"{latest}.partial"),
        ("fsync", f"{latest}.partial"),
        ("rename", f"{latest}.partial", latest),
        ("fsync", CHECKPOINTS),
    ]
