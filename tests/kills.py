"""SIGKILL at random moments of a training run, which is started again each time, until it is done.

A kill hits one rank, all processes of the job at once, or the launcher alone; in the middle of a step, of a
checkpoint that is being written, of a start. After each, every checkpoint is verified, and the newest is
never older than it was. kill -9 is no power cut: the system still writes what it was given. In which order it
is given what must last, test_kills.py looks up in the calls themselves.
"""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from breakable import LIMIT, Training
from launch import end_session, session_members, start

VICTIMS = ("rank", "rank", "job", "launcher")
AT_THE_START = 0.2  # of all kills
LONGEST_START = 1.5  # seconds
MOST_STEPS = 12  # that a life lasts
WITHIN = 0.05  # seconds after a step


def survive(training: Training, n_kills: int, seed: int) -> Counter[str]:
    """Kills it `n_kills` times. Returns how many of what, and how many left something unfinished."""
    rng, counts, newest = np.random.default_rng(seed), Counter[str](), 0
    while counts["kills"] < n_kills:
        victim = VICTIMS[rng.integers(len(VICTIMS))]
        assert live_and_die(training, victim, rng), f"it came to its end after {counts['kills']} kills"
        counts.update(["kills", f"of {victim}", *leftovers(training)])
        training.verify()
        saved = [0, *training.saved()]
        assert saved[-1] >= newest, f"step {newest} was saved, now {saved[-1]} is the newest"
        counts["with a new checkpoint"] += saved[-1] > newest
        newest = saved[-1]
    return counts


def live_and_die(training: Training, victim: str, rng: np.random.Generator) -> bool:
    """Whether it was killed: it may have come to its end before."""
    with TemporaryFile() as out, TemporaryFile() as err:
        process = start(training.command(), training.place, out, err)
        try:
            await_a_moment(training, process, rng)
            ended_well = process.poll() == 0
            if not ended_well:
                kill(process, victim, rng)
                assert process.wait(LIMIT) != 0
        finally:
            orphans = end_session(process)
        assert not orphans
        return not ended_well


def await_a_moment(training: Training, process: "subprocess.Popen[bytes]", rng: np.random.Generator) -> None:
    """Of its start, or some steps and a part of one later."""
    if rng.random() < AT_THE_START:
        time.sleep(rng.uniform(0, LONGEST_START))
        return
    metrics = training.place / "run" / "metrics.jsonl"
    before = file_number(metrics)
    await_that(lambda: file_number(metrics) != before, process)  # it has been cut: a new file
    wanted = n_lines(metrics) + 1 + rng.integers(MOST_STEPS)
    await_that(lambda: n_lines(metrics) >= wanted, process)
    time.sleep(rng.uniform(0, WITHIN))


def await_that(happens: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Or until the process has ended."""
    deadline = time.monotonic() + LIMIT
    while not happens() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def file_number(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(process: "subprocess.Popen[bytes]", victim: str, rng: np.random.Generator) -> None:
    members = session_members(process.pid)
    ranks = [pid for pid in members if pid != process.pid]
    if victim == "rank" and ranks:
        doomed = [ranks[rng.integers(len(ranks))]]
    elif victim == "launcher":
        doomed = [process.pid]
    else:
        doomed = members
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def leftovers(training: Training) -> list[str]:
    """What kinds of unfinished directories there are."""
    if not training.checkpoints.is_dir():
        return []
    return [
        path.suffix for path in training.checkpoints.iterdir() if path.suffix in (".partial", ".deleting")
    ]
