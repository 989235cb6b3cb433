"""Small training runs for tests to break: a command that is started until it has come to its end, what must
hold whenever it was interrupted, and what it has come to.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from launch import REPOSITORY, Done, run, under_mpirun

from minitrain.checkpoint.catalogue import checkpoints_in, step_of
from minitrain.checkpoint.listing import verify
from minitrain.observe.run_directory import CHECKPOINTS

LIMIT = 60.0  # seconds a start; for what hangs
STEPS = 12
TINY = (
    "--model.layers 2 --model.width 16 --model.heads 2 --model.ffn 24 --model.seq_len 16 "
    "--train.global_batch 8 --train.micro_batch 2 --train.eval_sequences 8 --data.path text.txt "
    "--run.sample_tokens 0 --run.export_hf false --run.progress plain --run.dir run --run.resume auto"
)
FOUR = "--parallel.dp 2 --parallel.pp 2 --parallel.zero 1"
THREADS = f"{FOUR} --collectives threads"
TEXT = "".join(f"In the beginning was line {i}, and it was {i * i % 97} words long.\n" for i in range(400))
PREFIX = "minitrain: error: "
OF_A_STEP = ("step", "loss", "grad_norm", "lr", "tokens", "loss_scale", "skipped", "eval_loss")


class Result(NamedTuple):
    """What a finished run has computed: of every line of metrics.jsonl what is no time, and all bytes of the
    last checkpoint but its manifest.
    """

    lines: list[dict[str, Any]]
    tensors: dict[str, bytes]


@dataclass(frozen=True)
class Training:
    """The same command whenever it is started, in `place`; the run is `place/run`."""

    place: Path
    arguments: str = FOUR
    ranks: int = 4
    steps: int = STEPS
    limit: float = LIMIT

    def __post_init__(self) -> None:
        (self.place / "text.txt").write_text(TEXT)

    def start(self, fault: str = "", rank: int = 0, step: int = 0, more: str = "") -> Done:
        """Perhaps with a fault of faulty.py, which then has happened."""
        program = ["-m", "minitrain"]
        if fault:
            program = [str(REPOSITORY / "tests" / "faulty.py"), fault, str(rank), str(step), "--"]
        return run(self.command(program, more), cwd=self.place, timeout=self.limit)

    def command(self, program: Sequence[str] = ("-m", "minitrain"), more: str = "") -> list[str]:
        arguments = f"{TINY} --train.steps {self.steps} {self.arguments} {more}".split()
        return under_mpirun([sys.executable, *program, *arguments], self.ranks)

    def finish(self) -> Result:
        """Starts it once more, which must bring it to its end; nothing is left of what was interrupted."""
        done = self.start()
        assert done.returncode == 0, done.stderr
        self.verify()
        left = {path.name for path in self.checkpoints.iterdir()} - {f"step-{n:08}" for n in self.saved()}
        assert left == {"latest"}
        return self.result()

    @property
    def checkpoints(self) -> Path:
        return self.place / "run" / CHECKPOINTS

    def saved(self) -> list[int]:
        """The steps of all checkpoints that there are, ascending."""
        return [step_of(path) for path in checkpoints_in(self.checkpoints)]

    def verify(self) -> None:
        """Whatever has the name of a checkpoint is one, whole."""
        for path in checkpoints_in(self.checkpoints):
            verify(path)

    def result(self) -> Result:
        text = (self.place / "run" / "metrics.jsonl").read_text()
        lines = [{key: entry.get(key) for key in OF_A_STEP} for entry in map(json.loads, text.splitlines())]
        newest = checkpoints_in(self.checkpoints)[-1]
        return Result(lines, {path.name: path.read_bytes() for path in newest.glob("*.safetensors")})


def only_error(done: Done) -> str:
    """The one line that the user gets, without its beginning."""
    lines = [line for line in done.stderr.splitlines() if line.startswith(PREFIX)]
    assert len(lines) == 1, done.stderr
    assert lines[0].count("; ") >= 2, "what; where; what to do"
    return lines[0].removeprefix(PREFIX)


def check_end(training: Training, done: Done, code: int | None = None, says: str = "") -> None:
    """What holds after any fault: the whole job has ended, in time, and not well; every checkpoint is whole.
    If a process was left that could speak, it says why (a regular expression), once, and ends with the code.
    """
    assert done.returncode != 0, done.stdout
    assert not done.orphans
    if code is None:
        assert PREFIX not in done.stderr
    else:
        assert re.search(says, only_error(done)), done.stderr
        assert done.returncode == code
    training.verify()


def same(one: Result, other: Result) -> bool:
    """Bit for bit. A message that compares them line by line would be long."""
    for a, b in zip(one.lines, other.lines, strict=True):
        assert a == b
    return one.tensors == other.tensors
