"""Places in a GPU's stream, and the time between them."""

from typing import Any, Protocol


class Clock(Protocol):
    def mark(self) -> Any:
        """Marks the place that the GPU will have come to when all that was started is done."""

    def seconds(self, begun: Any, ended: Any) -> float:
        """Between two marks that have been passed."""


class CudaClock:
    """By CUDA events, on the current stream."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record()
        return event

    def seconds(self, begun: Any, ended: Any) -> float:
        return float(self._cuda.get_elapsed_time(begun, ended)) / 1e3
