"""Pipeline schedules: for one stage, the order of its work, as a generator of instructions. No arrays, no
communication.

A schedule can be printed, drawn and checked without running anything. It alone knows what a first and a
last stage are.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What one instruction does with micro-batch m."""

    LOAD = "load"  # first stage: take the tokens
    RECV_ACT = "recv_act"  # wait for the activations of the previous stage
    FORWARD = "forward"
    SEND_ACT = "send_act"  # start to send activations to the next stage
    LOSS = "loss"  # last stage: head, loss, and their backward
    RECV_GRAD = "recv_grad"  # wait for the gradients of the next stage
    BACKWARD = "backward"
    SEND_GRAD = "send_grad"  # start to send gradients to the previous stage


class Instruction(NamedTuple):
    kind: Kind
    micro: int


Schedule = Callable[[int, int, int], Iterator[Instruction]]
"""(stage, number of stages, number of micro-batches) -> the instructions of that stage."""


def forward(stage: int, n_stages: int, micro: int) -> Iterator[Instruction]:
    """Micro-batch `micro` through the stage: from the previous one, or the tokens; to the next one, or the
    loss.
    """
    yield Instruction(Kind.LOAD if stage == 0 else Kind.RECV_ACT, micro)
    yield Instruction(Kind.FORWARD, micro)
    yield Instruction(Kind.LOSS if stage == n_stages - 1 else Kind.SEND_ACT, micro)


def backward(stage: int, n_stages: int, micro: int) -> Iterator[Instruction]:
    """And back. On the last stage the gradient comes from the loss."""
    if stage < n_stages - 1:
        yield Instruction(Kind.RECV_GRAD, micro)
    yield Instruction(Kind.BACKWARD, micro)
    if stage > 0:
        yield Instruction(Kind.SEND_GRAD, micro)


def gpipe(stage: int, n_stages: int, n_micro: int) -> Iterator[Instruction]:
    """All forwards, then all backwards; all activations are kept meanwhile (Huang et al. 2019)."""
    for micro in range(n_micro):
        yield from forward(stage, n_stages, micro)
    for micro in range(n_micro):
        yield from backward(stage, n_stages, micro)


def one_f_one_b(stage: int, n_stages: int, n_micro: int) -> Iterator[Instruction]:
    """One forward, one backward in turn, after enough forwards to fill the stages behind; at most n_stages
    - stage micro-batches' activations are kept (Narayanan et al. 2021, PipeDream-Flush).
    """
    warm_up = min(n_stages - 1 - stage, n_micro)
    for micro in range(warm_up):
        yield from forward(stage, n_stages, micro)
    for micro in range(warm_up, n_micro):
        yield from forward(stage, n_stages, micro)
        yield from backward(stage, n_stages, micro - warm_up)
    for micro in range(n_micro - warm_up, n_micro):
        yield from backward(stage, n_stages, micro)


def forward_only(stage: int, n_stages: int, n_micro: int) -> Iterator[Instruction]:
    """For validation."""
    for micro in range(n_micro):
        yield from forward(stage, n_stages, micro)


SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_f_one_b}
