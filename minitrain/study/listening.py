"""The operations of a stage, and a listener that hears of every call, its operands and what came of it.

As a timeline listens (observe/timeline.py): neither the operations nor the model knows of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minitrain.ops.table import Ops

Listener = Callable[[str, tuple[Any, ...], Any], None]
"""(name of the operation, its positional operands, its result)"""

NAMES = [name for name in vars(Ops) if not name.startswith("_")]


@contextmanager
def listening(ops: Ops, hear: Listener) -> Iterator[None]:
    """For the time of the context `hear` is told of every operation of this one table, when it is done."""
    for name in NAMES:
        setattr(ops, name, _told(getattr(ops, name), name, hear))
    try:
        yield
    finally:
        for name in NAMES:
            delattr(ops, name)


def _told(operation: Callable[..., Any], name: str, hear: Listener) -> Callable[..., Any]:
    def call(*operands: Any, **named: Any) -> Any:
        result = operation(*operands, **named)
        hear(name, operands, result)
        return result

    return call


class Products:
    """A listener that counts multiplications and additions in products: with matrices of parameters, and
    within attention, of which every query block is taken to see all keys (up to 64 positions it does).
    """

    def __init__(self) -> None:
        self.of_matrices, self.of_attention = 0, 0

    def __call__(self, name: str, operands: tuple[Any, ...], result: Any) -> None:
        match name:
            case "linear_forward" | "linear_wide":  # y = x W^T
                self.of_matrices += 2 * len(operands[0]) * operands[1].size
            case "linear_backward":  # dx = dy W, dW = dy^T x
                self.of_matrices += 4 * len(operands[0]) * operands[2].size
            case "attention_forward":  # s = q k^T, o = p v
                self.of_attention += 4 * _scores_times_width(operands[0])
            case "attention_backward":  # dp = do v^T, dv = p^T do, dq = ds k, dk = ds^T q
                self.of_attention += 8 * _scores_times_width(operands[0])


def _scores_times_width(x_BTHK: Any) -> int:
    B, T, H, K = x_BTHK.shape
    return int(B * H * T * T * K)
