"""Small agreements between all ranks outside the training step: one text for all, one error for all, and
whether all have the same.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.errors import MinitrainError, Problem

Result = TypeVar("Result")

LONGEST = 128  # bytes of a text in `gather_texts`: a size that no rank can be wrong about


def broadcast_text(comm: Comm, text: str | None, root: int = 0) -> str:
    """The text of `root`, on every rank. The other ranks pass None."""
    raw = np.frombuffer((text or "").encode(), np.uint8).copy()
    length = np.array([raw.size])
    comm.broadcast(length, root)
    if comm.rank != root:
        raw = np.empty(int(length[0]), np.uint8)
    comm.broadcast(raw, root)
    return bytes(raw).decode()


def agree(comm: Comm, error: MinitrainError | None) -> None:
    """Raises the error of the lowest rank that has one on every rank, marked as known everywhere; returns
    if none has any.
    """
    codes = np.zeros(comm.size, np.int64)
    comm.all_gather(np.array([error.exit_code if error else 0]), codes)
    failing = np.flatnonzero(codes)
    if failing.size == 0:
        return
    root = int(failing[0])
    mine = json.dumps(error.problems) if error and comm.rank == root else None
    problems = [Problem(*parts) for parts in json.loads(broadcast_text(comm, mine, root))]
    raise MinitrainError.everywhere(problems, int(codes[root]))


def together(comm: Comm, action: Callable[[], Result]) -> Result:
    """`action()`, which must not communicate; if it fails with a MinitrainError on any rank, that error on
    every rank.
    """
    error: MinitrainError | None = None
    try:
        result = action()
    except MinitrainError as problem:
        error = problem
    agree(comm, error)
    return result


def alike(comm: Comm, numbers: Array) -> Array:
    """Of each of some int64 numbers, whether all ranks have the same one; every rank gets the answer.

    One all-reduce: the maximum of x and that of ~x, which falls as x rises, are each other's complement
    exactly if there is only one x.
    """
    both = np.stack([numbers, ~numbers])
    comm.all_reduce(both, "max")
    same: Array = both[0] == ~both[1]
    return same


def gather_texts(comm: Comm, text: str) -> dict[int, str]:
    """The text of every member, cut off at `LONGEST` bytes, by its rank in the world; on every rank."""
    mine = np.frombuffer(text.encode()[:LONGEST].ljust(LONGEST, b"\0"), np.uint8).copy()
    rows = np.empty((comm.size, LONGEST), np.uint8)
    comm.all_gather(mine, rows)
    texts = (row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows)
    return dict(zip(comm.members, texts, strict=True))


@functools.lru_cache(maxsize=1024)
def fingerprint(text: str) -> int:
    """63 bits that stand for a text, the same in every process (Python's own hash is not)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
