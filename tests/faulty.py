"""`python -m minitrain` with a fault: python tests/faulty.py WHAT RANK STEP -- ARGUMENTS

WHAT is a happening and, but for `begin`, the place in the step where it happens, such as `kill@forward`:

    kill        SIGKILL to itself              begin       before the step
    segfault    SIGSEGV to itself              forward     in the forward of the second micro-batch
    exit        os._exit(1)                    collective  in the first collective, the others being in it
    raise       an exception nobody foresaw    message     after the first receive, before the first send
    memory      an array too large for any machine
    sleep       for ever                       or where it writes the first checkpoint after the step
    stop        SIGSTOP to itself              (ranks that are processes only), before it
    term        SIGTERM to itself
    twice       SIGTERM to itself, two times
    launcher    SIGUSR1 to the launcher        create      makes the second file
    others      SIGTERM to all other ranks     write       writes what is not weights
                again and again, for ever      flush       flushes the first file
    full        an OSError: no space           digest      reads the first file back
    limit       no file beyond 20 kB           manifest    writes the manifest
                                               rename      gives the directory its name
    shrink      text.txt loses its end         latest      says which is the newest
    log         run/metrics.jsonl is removed   prune       removes an old one, which is `.deleting` by now
    remove      run/checkpoints is removed
    second      the same job once more

or what this rank does otherwise than all others:

    slow        every step from STEP on takes half a second longer
    size, dtype, op, verb      of its first all-reduce over more than one rank
    missing, order             the first all-reduce is left out; or comes after the second one
    shape                      of its first message
    nan                        its gradient of the first unit is not a number
    flip                       one bit of its first weight, after the step
    source, numpy, byteorder   another software, at the start (STEP means nothing)

Ranks are processes of mpirun, or threads (`--collectives threads`).
"""

import errno
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # as minitrain/__main__.py does, before NumPy is imported

import launch
import numpy as np

import minitrain.checkpoint.catalogue as catalogue
import minitrain.checkpoint.saving as saving
import minitrain.train
import minitrain.watch.software
from minitrain.comm.traced import TracedComm
from minitrain.step import Trainer

Fault = Callable[[Trainer], None]


def raise_unforeseen() -> None:
    raise RuntimeError("a planted fault")


def term_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def tell_launcher() -> None:
    """Returns when the launcher has passed the signal on."""
    arrived = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: arrived.set())
    os.kill(os.getppid(), signal.SIGUSR1)
    while not arrived.is_set():
        time.sleep(0.01)


def end_others() -> None:
    """They wait for this rank meanwhile."""
    children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
    while True:
        for pid in {int(pid) for pid in children.read_text().split()} - {os.getpid()}:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)


def find_no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def start_the_same_job() -> None:
    """On as many ranks; what became of it is printed."""
    ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    done = launch.run_minitrain(*sys.argv[1:], ranks=ranks, timeout=60)
    print(f"the second job: {done.returncode} {done.stderr.splitlines()[0]}", flush=True)


HAPPENINGS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(1),
    "raise": raise_unforeseen,
    "memory": lambda: np.ones(1 << 50),
    "sleep": lambda: time.sleep(1e6),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "twice": term_twice,
    "launcher": tell_launcher,
    "others": end_others,
    "full": find_no_space,
    "limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    "shrink": lambda: os.truncate("text.txt", 4096),
    "log": lambda: os.remove("run/metrics.jsonl"),
    "remove": lambda: shutil.rmtree("run/checkpoints"),
    "second": start_the_same_job,
}


def before_step(happen: Callable[[], object]) -> Fault:
    def fault(trainer: Trainer) -> None:
        happen()

    return fault


def in_forward(happen: Callable[[], object]) -> Fault:
    def arm(trainer: Trainer) -> None:
        forward, calls = trainer.stage.forward, []

        def faulty(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                happen()
            return forward(*arguments)

        trainer.stage.forward = faulty  # type: ignore[method-assign]

    return arm


def in_collective(happen: Callable[[], object]) -> Fault:
    def faulty(comm: TracedComm, *arguments: Any) -> None:
        time.sleep(0.2)  # the others are in it by now
        happen()

    return lambda trainer: once("all_reduce", faulty)


def between_messages(happen: Callable[[], object]) -> Fault:
    return lambda trainer: once("start_send", lambda comm, *arguments: happen())


PLACES: dict[str, Callable[[Callable[[], object]], Fault]] = {
    "begin": before_step,
    "forward": in_forward,
    "collective": in_collective,
    "message": between_messages,
}


SAVING: dict[str, tuple[Any, str]] = {  # the function that is about to be called, where it is looked up
    "create": (saving, "create"),
    "write": (saving, "write_state"),
    "flush": (saving, "flush"),
    "digest": (saving, "digest_own_chunks"),
    "manifest": (saving, "write_text"),
    "rename": (Path, "rename"),
    "latest": (catalogue, "write_text"),
    "prune": (catalogue, "shutil"),
}


class BeforeRemoval(NamedTuple):
    """Stands for the module `shutil`."""

    rmtree: Callable[..., Any]


def in_saving(place: str, happen: Callable[[], object]) -> Fault:
    module, name = SAVING[place]
    original = getattr(module, name)
    function = original.rmtree if place == "prune" else original

    def faulty(*arguments: Any) -> Any:
        setattr(module, name, original)
        happen()
        return function(*arguments)

    return lambda trainer: setattr(module, name, BeforeRemoval(faulty) if place == "prune" else faulty)


def once(verb: str, faulty: Callable[..., Any]) -> None:
    """The next call of a verb by this thread, of a communicator that is seen by the ledger, is `faulty`."""
    original, me, done = getattr(TracedComm, verb), threading.get_ident(), []

    def method(comm: TracedComm, *arguments: Any) -> Any:
        if done or threading.get_ident() != me:
            return original(comm, *arguments)
        done.append(1)
        return faulty(comm, *arguments)

    setattr(TracedComm, verb, method)


def all_reduce_instead(other: Callable[..., Any]) -> Fault:
    return lambda trainer: once("all_reduce", other)


def swapped(comm: TracedComm, *arguments: Any) -> None:
    """This one comes after the next one."""

    def second(next_comm: TracedComm, *next_arguments: Any) -> None:
        next_comm.all_reduce(*next_arguments)
        comm.all_reduce(*arguments)

    once("all_reduce", second)


def another_shape(comm: TracedComm, buffer: np.ndarray, to: int) -> Any:
    return comm.start_send(np.ascontiguousarray(buffer[:-1]), to)


def spoil_gradient(trainer: Trainer) -> None:
    unit = trainer.stage.units[0]
    (unit.grad if unit.grad is not None else unit.grad_shard)[0] = np.nan


def flip_bit(trainer: Trainer) -> None:
    """The lowest of the first byte of the first unit's own part of the parameters."""
    trainer.stage.units[0].param_shard.view(np.uint8)[0] ^= 1


def last_letter_dropped(name: str) -> Callable[[], dict[str, str]]:
    original = minitrain.watch.software.software
    return lambda: original() | {name: original()[name][:-1]}


BEFORE: dict[str, Fault] = {  # of the step
    "slow": lambda trainer: time.sleep(0.5),
    "size": all_reduce_instead(lambda comm, x, *op: comm.all_reduce(x.ravel()[:-1].copy(), *op)),
    "dtype": all_reduce_instead(lambda comm, x, *op: comm.all_reduce(x.astype(np.int32), *op)),
    "op": all_reduce_instead(lambda comm, x, *op: comm.all_reduce(x, "sum" if op else "max")),
    "verb": all_reduce_instead(lambda comm, x, *op: comm.broadcast(x, 0)),
    "missing": all_reduce_instead(lambda comm, x, *op: None),
    "order": all_reduce_instead(swapped),
    "shape": lambda trainer: once("start_send", another_shape),
    "nan": spoil_gradient,
}
AFTER: dict[str, Fault] = {"flip": flip_bit}
SOFTWARE = {"source": "source code of minitrain", "numpy": "version of NumPy", "byteorder": "byte order"}


def plant(what: str, rank: int, step: int) -> None:
    if what in SOFTWARE:
        from minitrain.launched import launched

        if launched(os.environ).rank == rank:
            minitrain.watch.software.software = last_letter_dropped(SOFTWARE[what])
        return
    happening, _, place = what.partition("@")
    before, after = BEFORE.get(what), AFTER.get(what)
    if place in SAVING:
        after = in_saving(place, HAPPENINGS[happening])
    elif happening in HAPPENINGS:
        before = PLACES[place or "begin"](HAPPENINGS[happening])
    assert before or after, f"what is {what}?"
    start_step = minitrain.train.start_step

    def faulty_step(trainer: Trainer, batch: Any, lr: float, number: int) -> Any:
        due = trainer.grid.world.rank == rank and (number == step or (number > step and what == "slow"))
        if due and before:
            before(trainer)
        result = start_step(trainer, batch, lr, number)
        if due and after:
            after(trainer)
        return result

    minitrain.train.start_step = faulty_step


if __name__ == "__main__":
    import runpy

    separator = sys.argv.index("--")
    plant(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.argv[1:] = sys.argv[separator + 1 :]
    runpy.run_module("minitrain", run_name="__main__", alter_sys=True)
