"""Small agreements between all ranks outside the training step: one text for all, one error for all."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from minitrain.comm.interface import Comm
from minitrain.errors import MinitrainError, Problem

Result = TypeVar("Result")


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
    mine = "\0".join("\1".join(p) for p in error.problems) if error and comm.rank == root else None
    problems = [Problem(*p.split("\1")) for p in broadcast_text(comm, mine, root).split("\0")]
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
