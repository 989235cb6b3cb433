"""One training step of minitrain beside PyTorch's: same model, same weights, same data, fp32.

Each contender is a process that lives as long as the comparison, so that no allocator and no threads are
shared; they take turns, and the others sleep. Both must compute the same losses, or nothing is reported.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from problem import BATCH, PROBLEMS

CHECKED_STEPS = 3
LOSS_TOLERANCE = 1e-4
PAUSE = 0.02  # seconds between turns: threads that have nothing to do spin for a while before they sleep


class Contender(NamedTuple):
    side: str  # module: ours, pytorch
    ranks: int
    threads: int  # of a rank


PAIRS = (  # on as many cores each
    (Contender("ours", ranks=1, threads=1), Contender("pytorch", ranks=1, threads=1)),
    (Contender("ours", ranks=2, threads=1), Contender("pytorch", ranks=1, threads=2)),
)


class CannotRunError(Exception):
    pass


class Worker:
    """The processes of a contender, which end when their sockets are closed."""

    def __init__(self, contender: Contender, problem: str, folder: Path) -> None:
        self.contender, self.problem = contender, problem
        self.seconds: list[float] = []  # of every timed step, of the slowest rank
        self.losses: list[float] = []
        self.peak: list[int | None] = []
        self.imports: list[int | None] = []
        address = folder / f"{contender.side}-{contender.ranks}-{contender.threads}"
        command = [str(Path(__file__).with_name("worker.py")), contender.side, problem, str(address)]
        if contender.ranks == 1:
            command = [sys.executable, *command]
        else:
            command = [mpirun(), "-n", str(contender.ranks), sys.executable, "-m", "mpi4py", *command]
        limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(limits, str(contender.threads))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(address))
            server.listen()
            server.settimeout(1)
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            self._ranks = [self._accept(server) for _ in range(contender.ranks)]

    def _accept(self, server: socket.socket) -> TextIO:
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise CannotRunError(f"{self.contender} ended before it began") from None
            else:
                with connection:  # stays open as long as the file
                    connection.setblocking(True)
                    return connection.makefile("rw")

    def steps(self, n: int) -> list[float]:
        """Takes n steps and returns their seconds."""
        for rank in self._ranks:
            print(n, file=rank, flush=True)
        answers = [rank.readline() for rank in self._ranks]
        if not all(answers):
            raise CannotRunError(f"{self.contender} ended before its turn did")
        reports = [json.loads(answer) for answer in answers]
        self.losses += reports[0]["losses"]
        self.peak, self.imports = ([report[key] for report in reports] for key in ("peak", "imports"))
        return [max(ranks) for ranks in zip(*(report["seconds"] for report in reports), strict=True)]

    def turn(self) -> None:
        """Some timed steps, after one with the caches as another contender has left them."""
        self.seconds += self.steps(1 + PROBLEMS[self.problem].steps_a_turn)[1:]
        time.sleep(PAUSE)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks:
            rank.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()


def mpirun() -> str:
    """That of this Python's environment, where there is one."""
    return shutil.which("mpirun", path=Path(sys.executable).parent) or "mpirun"


def compare(problem: str, rounds: int) -> list[dict[str, Any]]:
    """A record for each contender, in order."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [contender for pair in PAIRS for contender in pair]
        workers = [stack.enter_context(Worker(contender, problem, folder)) for contender in contenders]
        for worker in workers:
            worker.steps(CHECKED_STEPS)
        require_same_losses({str(worker.contender): worker.losses for worker in workers})
        for turn in range(rounds):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                worker.turn()
    records = [record(worker) for worker in workers]
    for ours, theirs in zip(records[::2], records[1::2], strict=True):
        ours["ratio"] = theirs["seconds"] / ours["seconds"]
    return records


def require_same_losses(losses: dict[str, list[float]]) -> None:
    """Of the steps after an update too: if gradients, clipping or optimizer differed, so would these."""
    for step in zip(*losses.values(), strict=True):
        if not all(abs(loss - step[0]) <= LOSS_TOLERANCE for loss in step):  # nor if one is not a number
            raise CannotRunError(f"the contenders do not compute the same losses: {losses}")


def record(worker: Worker) -> dict[str, Any]:
    """What is known of a contender. `ratio` is the speed of ours over that of its partner."""
    seconds = statistics.median(worker.seconds)
    return {
        "problem": worker.problem,
        **worker.contender._asdict(),
        "seconds": seconds,
        "seconds_min": min(worker.seconds),
        "seconds_max": max(worker.seconds),
        "steps": len(worker.seconds),
        "tokens_per_second": BATCH * PROBLEMS[worker.problem].model.seq_len / seconds,
        "ratio": None,
        "peak_memory": None if None in worker.peak else sum(worker.peak),
        "memory_of_imports": None if None in worker.imports else sum(worker.imports),
        "losses": worker.losses[:CHECKED_STEPS],
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    mpi = subprocess.run([mpirun(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "mpi": mpi.splitlines()[0],
        "torch": importlib.metadata.version("torch"),
        "load": os.getloadavg()[0],
    }


EXPLANATION = """\
ms/step: median. ratio: our speed over PyTorch's on as many cores. MiB: peak of physical memory, of all
ranks together; imports: what it was before the model was made."""
HEADER = ("model", "who", "ranks", "threads", "ms/step", "min .. max", "tokens/s", "ratio", "MiB", "imports")
NAMES = {"ours": "minitrain", "pytorch": "PyTorch"}


def table(records: list[dict[str, Any]]) -> list[str]:
    rows = [HEADER, *(row(r) for r in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(n) for c, n in zip(cells, widths, strict=True)) for cells in rows]


def row(r: dict[str, Any]) -> tuple[str, ...]:
    ms, least, most = (f"{1e3 * r[key]:.2f}" for key in ("seconds", "seconds_min", "seconds_max"))
    ratio = "-" if r["ratio"] is None else f"{r['ratio']:.2f}"
    memory = ("-" if n is None else f"{n / 2**20:.0f}" for n in (r["peak_memory"], r["memory_of_imports"]))
    where = (r["problem"], NAMES[r["side"]], str(r["ranks"]), str(r["threads"]))
    return (*where, ms, f"{least} .. {most}", f"{r['tokens_per_second']:.0f}", ratio, *memory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns of every contender (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        about = machine()
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
        records = [r for problem in PROBLEMS for r in compare(problem, arguments.rounds)]
    except (CannotRunError, ImportError, OSError, subprocess.SubprocessError) as error:
        print(f"scripts/bench_step: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(records)))
    print(EXPLANATION)
    if about["load"] > 1:
        print(f"Other work was running (load {about['load']:.1f}): doubtful figures, of 2 cores most of all.")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "results": records}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
