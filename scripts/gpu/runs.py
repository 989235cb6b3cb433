"""Whole runs on a GPU, as a user starts them, against the same runs on the CPU.

Each is a `python -m minitrain` of a tiny model. What it has computed stands in its metrics.jsonl.
"""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

LIMIT = 120.0  # seconds of a run
STEPS = 6
TINY = {
    "model.layers": 2, "model.width": 64, "model.heads": 4, "model.kv_heads": 2, "model.seq_len": 32,
    "train.global_batch": 8, "train.micro_batch": 2, "train.eval_sequences": 8, "train.steps": STEPS,
    "run.sample_tokens": 16, "run.progress": "none", "data.path": "text.txt", "optim.warmup": 2,
}  # fmt: skip
TEXT = "".join(f"In the beginning was line {i}, and it was {i * i % 97} words long.\n" for i in range(400))

# How far losses of a GPU may be from those of a CPU, relative: sums have other orders, and a value of 16 bits
# is rounded in other places. That happens on CPUs too, between one tensor rank and two, whose losses of these
# runs are 2e-16, 9e-9, 1e-4, 2e-4, 1e-4 and 4e-4 apart. Of 16 bits and 8 about ten times that; with more
# digits there is room for a GPU's own rounding of exp and tanh.
WITHIN = {"fp64": 1e-12, "fp32": 1e-6, "fp16": 1e-3, "bf16": 2e-3, "bf16-pure": 2e-3, "fp8": 4e-3}


class Outcome(NamedTuple):
    """`problem` is empty if all is well; `measured` says how well."""

    name: str
    problem: str
    measured: str = ""


class FailedError(Exception):
    pass


class Runs:
    """Makes runs in `folder`. `backend` is what is compared with numpy."""

    def __init__(self, folder: Path, backend: str = "cupy") -> None:
        self._folder, self._backend = folder, backend
        self._until = math.inf  # of perf_counter: when no run may be under way any more
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(TEXT)

    def all(self, limit: float) -> Iterator[Outcome]:
        """What does not end in `limit` seconds has failed."""
        self._until = time.perf_counter() + limit
        for precision in WITHIN:
            yield self._guarded(f"1 rank, {precision}", partial(self.precision, precision))
        for zero in (0, 1, 2, 3):
            layout = {"parallel.dp": 2, "parallel.tp": 2, "parallel.zero": zero, "parallel.sequence": "true"}
            yield self._guarded(f"4 ranks on one GPU, ZeRO {zero}", partial(self.layout, layout))
        layout = {"parallel.dp": 2, "parallel.pp": 2}
        yield self._guarded("4 ranks on one GPU, pipeline", partial(self.layout, layout))
        for name in ("adam8bit", "muon", "sophia-g"):
            yield self._guarded(f"1 rank, {name}", partial(self.layout, {"optim.name": name}))
        yield self._guarded("resume", self.resume)
        yield self._guarded("resume on the CPU", self.resume_elsewhere)

    def precision(self, precision: str) -> str:
        return self._compare({"precision": precision}, WITHIN[precision])

    def layout(self, layout: dict[str, object]) -> str:
        """In fp64 against one process on the CPU."""
        name = layout.get("optim.name", "adamw")
        alone = {"optim.name": name, "precision": "fp64"}
        return self._compare({"precision": "fp64", **layout}, 1e-4 if name == "adam8bit" else 1e-10, alone)

    def resume(self) -> str:
        """A run that goes on from its third step has the bits of one that was not interrupted."""
        whole = self._losses("whole", {"backend": self._backend, "run.save_every": 3, "run.keep": 9})
        path = self._folder / "whole" / "checkpoints" / "step-00000003"
        rest = self._losses("rest", {"backend": self._backend, "run.resume": path})
        if whole[3:] != rest:
            raise FailedError(f"other losses after a resumption: {rest}, not {whole[3:]}")
        return "the same bits"

    def resume_elsewhere(self) -> str:
        """The CPU goes on from a checkpoint of the GPU."""
        path = self._folder / "whole" / "checkpoints" / "step-00000003"
        theirs = read_losses(self._folder / "whole")[3:]
        return distance(self._losses("on the CPU", {"backend": "numpy", "run.resume": path}), theirs, 1e-4)

    def _compare(
        self, settings: dict[str, object], within: float, alone: dict[str, object] | None = None
    ) -> str:
        name = " ".join(f"{key}={value}" for key, value in settings.items())
        ours = self._losses(name, {**settings, "backend": self._backend})
        theirs = self._losses(f"{name} numpy", {**(settings if alone is None else alone), "backend": "numpy"})
        return distance(ours, theirs, within)

    def _losses(self, name: str, settings: dict[str, object]) -> list[float]:
        """Of each step, and of the validation at the end."""
        directory = self._folder / name.replace("/", "-")
        shutil.rmtree(directory, ignore_errors=True)
        n_ranks = 1
        for axis in ("dp", "tp", "pp"):
            n_ranks *= int(str(settings.get(f"parallel.{axis}", 1)))
        command, more = [sys.executable], {}
        if n_ranks > 1 and (mpirun := mpirun_here()):
            command = [mpirun, "-n", str(n_ranks), sys.executable]
        elif n_ranks > 1:
            more = {"collectives": "threads"}
        options = {**TINY, **settings, **more, "run.dir": directory}
        command += [
            "-m",
            "minitrain",
            *(word for key, value in options.items() for word in (f"--{key}", str(value))),
        ]
        limit = min(LIMIT, self._until - time.perf_counter())
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise FailedError(f"exit code {done.returncode}: {done.stderr.strip()[-600:]}")
        return read_losses(directory)

    def _guarded(self, name: str, run: Callable[[], str]) -> Outcome:
        if time.perf_counter() > self._until:
            return Outcome(name, "not run: there was no time left")
        try:
            return Outcome(name, "", run())
        except (FailedError, OSError, subprocess.TimeoutExpired, ValueError, KeyError) as problem:
            return Outcome(name, f"{type(problem).__name__}: {problem}")


def mpirun_here() -> str | None:
    """That of this Python's environment, or else the system's."""
    return shutil.which("mpirun", path=Path(sys.executable).parent) or shutil.which("mpirun")


def read_losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("eval_loss")) for line in lines]


def distance(ours: list[float], theirs: list[float], within: float) -> str:
    """The largest relative difference, if it is small enough."""
    if len(ours) != len(theirs):
        raise FailedError(f"{len(ours)} losses, not {len(theirs)}")
    apart = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    worst = max(apart)
    if not all(each <= within for each in apart):  # nor if one is not a number
        raise FailedError(f"losses differ by {worst:.2g}, more than {within:.2g}: {ours}, not {theirs}")
    return f"losses within {worst:.1g}"
