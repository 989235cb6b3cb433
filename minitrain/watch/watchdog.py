"""A thread on every rank that ends the job when it can go no further: a call that does not end, or that a GPU
knows never to end, and a launcher that is gone.

It uses no MPI but for the end, as the rank's own thread may be inside a call. Ranks meet in the run
directory:

    1. a call has been pending longer than the limit: the first rank to notice makes the directory
       `hang/START`, START being when the run began, the same on all ranks and on no other run's
    2. the others see it at their next look, and each writes `hang-rank-N.json` into it
    3. the first waits for them a moment, says what it makes of them in one line, and ends the job

Nothing is written before. Looks cost a rank one `stat` of a file that is not there, once a second at most.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitrain.comm.agree import broadcast_text
from minitrain.comm.interface import World
from minitrain.config import Config
from minitrain.errors import MinitrainError, Problem, TryAgainError, render
from minitrain.launched import launched
from minitrain.watch.calls import CallLog, Pending
from minitrain.watch.dump import dump_path, look, read_dumps, to_dump, write_dump
from minitrain.watch.hang import explain

LOOKS = 10  # within the limit
FASTEST, SLOWEST = 0.02, 1.0  # seconds between looks
PATIENCE = 1.0  # seconds beyond three looks, in which dumps are waited for
GRACE = 0.2  # seconds in which the launcher passes on what was printed
LONGEST_END = 5.0  # seconds that an end by MPI may take


@contextmanager
def watchdog(config: Config, world: World, calls: CallLog) -> Iterator[None]:
    """Watches over `calls` as long as the context lasts. Collective over `world`; nothing for one rank that
    no launcher started, or where there is no run directory to meet in.
    """
    launcher = os.getppid() if launched(os.environ).variable else None
    if (world.size == 1 and not launcher) or config.run.dir is None:
        yield
        return
    start = broadcast_text(world, time.strftime("%Y%m%d-%H%M%S") if world.rank == 0 else None)
    directory = Path(config.run.dir).absolute() / "hang" / start
    dog = Watchdog(world, calls, directory, config.run.hang_seconds, launcher)
    dog.start()
    try:
        yield
    finally:
        dog.stop()


class Watchdog:
    """`limit` in seconds (0: calls may take for ever). `parent`: the process that must not go away."""

    def __init__(
        self, world: World, calls: CallLog, directory: Path, limit: float, parent: int | None
    ) -> None:
        self._world, self._calls, self._directory = world, calls, directory
        self._limit, self._parent = limit, parent
        self._period = min(max(limit / LOOKS, FASTEST), SLOWEST) if limit else SLOWEST
        self._seen: Pending | None = None
        self._looked, self._waited = time.monotonic(), 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watchdog {world.rank}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            if self._parent is not None and os.getppid() != self._parent:
                self._leave()
            self._check_gpu()
            if self._limit and self._waits() > self._limit:
                self._report()
            if self._limit and os.path.exists(self._directory):  # False if that cannot be told
                self._answer()

    def _check_gpu(self) -> None:
        """Ends the job if a GPU has lost a peer. That one may be able to say why it ends: it has time to."""
        if self._calls.gpu is None:
            return
        try:
            self._calls.gpu.check()
        except MinitrainError as error:
            if self._stopped.wait(LONGEST_END):  # this rank is about to tell of something itself
                return
            if self._is_first():
                _say(*error.problems)
                self._end(error.exit_code)
            self._answer()

    def _waits(self) -> float:
        """Seconds for which the present call has been pending, as far as this process was running: stopped
        and continued with all others, it would see them all overdue.
        """
        now, pending = time.monotonic(), self._calls.unended()
        passed = min(now - self._looked, 2 * self._period)
        self._waited = self._waited + passed if pending is not None and pending is self._seen else 0.0
        self._looked, self._seen = now, pending
        return self._waited

    def _report(self) -> None:
        """Speaks for the job, unless another rank already does."""
        rank, own = self._world.rank, to_dump(look(self._world.rank, self._calls))
        if own.pending is None:  # it has ended in this moment
            return
        remedy = "restart from the last checkpoint with --run.resume auto"
        if not self._is_first():
            return self._answer()
        try:
            write_dump(self._directory, rank, self._calls)
            self._await_dumps()
            dumps = read_dumps(self._directory, self._world.size)
            remedy += f", the calls and stacks of every rank are in {self._directory}"
        except OSError:  # no place to meet
            dumps = {}
        _say(explain(dumps | {rank: own}, remedy))
        self._end()

    def _is_first(self) -> bool:
        """Whether this rank is to speak for all: it is the first to make the directory, or nobody can."""
        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            self._directory.mkdir()
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    def _await_dumps(self) -> None:
        deadline = time.monotonic() + 3 * self._period + PATIENCE
        paths = [dump_path(self._directory, rank) for rank in range(self._world.size)]
        while time.monotonic() < deadline and not all(path.exists() for path in paths):
            time.sleep(self._period / 4)

    def _answer(self) -> None:
        """Another rank has noticed, and ends the job; if it cannot, this one does."""
        try:
            write_dump(self._directory, self._world.rank, self._calls)
        except OSError:
            pass  # the line will say that this rank gives no sign of life
        time.sleep(3 * self._period + PATIENCE + LONGEST_END)
        self._end()

    def _end(self, code: int = TryAgainError.exit_code) -> None:
        time.sleep(GRACE)
        last_resort = threading.Timer(LONGEST_END, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        self._world.abort(code)
        os._exit(code)

    def _leave(self) -> None:
        """The launcher is gone, and with it whoever would end this rank, or read more than one line of it."""
        if self._world.rank == 0:
            where = f"process {self._parent}, parent of rank 0"
            _say(Problem("the launcher is gone", where, "restart with --run.resume auto"))
        os._exit(TryAgainError.exit_code)


def _say(*problems: Problem) -> None:
    try:
        print(render(list(problems)), file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody listens
