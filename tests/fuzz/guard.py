"""What a fuzz case may use: its time, its memory, its directory.

    with guarded() as seen:
        read(what_somebody_else_wrote)
    seen.complaints(sandbox, what_somebody_else_wrote)

A case that takes too long raises `TookTooLong`; one that wants far too much memory meets a MemoryError and
leaves the machine alone. Every file that Python opens meanwhile is noted. Memory is watched on Linux alone.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NamedTuple

SECONDS = 60  # of one case, which takes a fraction of one: what is beyond hangs
GROWTH = 64 << 20  # bytes by which memory may grow in a case
ADDRESSES = 1 << 30  # bytes of address space beyond which there is nothing
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TookTooLong(BaseException):
    """Not an Exception: nothing under test may catch it."""


class Opened(NamedTuple):
    path: str  # with no link left in it
    writing: bool


class Seen:
    """What happened during a case."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.growth = 0

    def complaints(self, sandbox: Path, *own: Path) -> list[str]:
        """Of memory, of files opened to be written, and of files in `sandbox` but not in `own`."""
        found = [f"memory grew by {self.growth >> 20} MiB"] if self.growth >= GROWTH else []
        for path, writing in self.opened:
            strange = Path(path).is_relative_to(sandbox) and not any(
                Path(path).is_relative_to(place) for place in own
            )
            if writing or strange:
                found.append(f"{path} was opened{' to be written' if writing else ''}")
        return found


_watching: list[Seen] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    """A hook of the interpreter: it cannot be taken away again, so it looks whether anybody is watching."""
    if event != "open" or not _watching:
        return
    path, _, flags = args
    if isinstance(path, str | bytes) and isinstance(flags, int):
        stays = flags & os.O_NOFOLLOW and os.path.islink(path)  # it will not be opened
        real = os.path.abspath(os.fsdecode(path)) if stays else os.path.realpath(os.fsdecode(path))
        if not real.startswith(("/proc/", "/dev/null")) and "__pycache__" not in real:
            _watching[-1].opened.append(Opened(real, bool(flags & WRITING)))


sys.addaudithook(_audit)


@contextmanager
def guarded() -> Iterator[Seen]:
    """Watches over one case."""
    seen = Seen()
    former = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with _bounded(seen) if sys.platform == "linux" else nullcontext():
            _watching.append(seen)
            try:
                yield seen
            finally:
                _watching.pop()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


@contextmanager
def _bounded(seen: Seen) -> Iterator[None]:
    """Notes by how much memory grows, which it can by so much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ADDRESSES, hard))
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is resident now
    before = _memory("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        seen.growth = _memory("VmHWM") - before


def _give_back() -> None:
    """What was freed goes back to the system, if the C library can do that: else it is used again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TookTooLong(f"more than {SECONDS} s")


def _memory(entry: str) -> int:
    """Bytes, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(entry)
