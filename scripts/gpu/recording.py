"""A GPU that notes what is started on it: for each kernel and product how long it took, and how much it did.

Between the marks before and after a launch the GPU may also wait for the host. Who keeps it busy at the
beginning, so that the host is ahead, measures kernels alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from clock import Clock

from minitrain.arrays.device import Gpu
from minitrain.arrays.types import Array


class Span(NamedTuple):
    """What the GPU does from one mark to another. `inside` is part of it, and noted by itself."""

    name: str
    begun: Any
    ended: Any
    bytes: int  # of the arrays a kernel is given, each once, whether it is read or written
    flops: int  # of a product
    inside: list["Span"]


class Row(NamedTuple):
    """All spans of one name."""

    name: str
    calls: int
    seconds: float  # without what is noted of others inside
    bytes: int
    flops: int


class RecordingGpu:
    """Another GPU, which it hands everything on to. It records in `recorded` alone; else it costs nothing."""

    def __init__(self, gpu: Gpu, clock: Clock) -> None:
        self._gpu, self._clock = gpu, clock
        self.xp, self.to_device = gpu.xp, gpu.to_device
        self.synchronize, self.start_reading = gpu.synchronize, gpu.start_reading
        self.launch: Callable[..., None] = gpu.launch
        self.gemm: Any = gpu.gemm
        self._recording = False
        self._spans: list[Span] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def recorded(self, name: str, work: Callable[[], None]) -> list[Row]:
        """Does the work, and waits for it. What is not noted by itself has this name."""
        self.launch, self.gemm = self._launch, _RecordingGemm(self, self._gpu.gemm)
        self._recording, self._spans = True, []
        try:
            with self.span(name):
                work()
        finally:
            self._recording = False
            self.launch, self.gemm = self._gpu.launch, self._gpu.gemm
        self.synchronize()
        return self._rows()

    @contextmanager
    def span(self, name: str, n_bytes: int = 0, flops: int = 0) -> Iterator[None]:
        outer, self._spans = self._spans, []
        begun = self._clock.mark()
        yield
        ended = self._clock.mark()
        inside, self._spans = self._spans, outer
        outer.append(Span(name, begun, ended, n_bytes, flops, inside))

    def noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it does besides launches and products noted under this name."""

        def call(*args: Any, **keywords: Any) -> Any:
            if not self._recording:
                return function(*args, **keywords)
            with self.span(name):
                return function(*args, **keywords)

        return call

    def _launch(self, source: str, kernel: str, types: Mapping[str, Any], *rest: Any) -> None:
        n_bytes = sum(x.nbytes for x in rest if hasattr(x, "nbytes"))
        with self.span(kernel, n_bytes):
            self._gpu.launch(source, kernel, types, *rest)

    def _rows(self) -> list[Row]:
        """The longest first."""
        rows: dict[str, Row] = {}

        def visit(span: Span) -> float:
            whole = self._clock.seconds(span.begun, span.ended)
            own = whole - sum(visit(child) for child in span.inside)
            row = rows.get(span.name, Row(span.name, 0, 0.0, 0, 0))
            rows[span.name] = Row(
                span.name, row.calls + 1, row.seconds + own, row.bytes + span.bytes, row.flops + span.flops
            )
            return whole

        for span in self._spans:
            visit(span)
        return sorted(rows.values(), key=lambda row: -row.seconds)


class _RecordingGemm:
    def __init__(self, gpu: RecordingGpu, gemm: Any) -> None:
        self._gpu, self._gemm = gpu, gemm

    def product(self, a: Array, b: Array, out: Array, **how: Any) -> None:
        with self._gpu.span(*description(a, b, out, how)):
            self._gemm.product(a, b, out, **how)

    def batched(self, a: Array, b: Array, out: Array, **how: Any) -> None:
        with self._gpu.span(*description(a, b, out, how)):
            self._gemm.batched(a, b, out, **how)


def description(a: Array, b: Array, out: Array, how: Mapping[str, Any]) -> tuple[str, int, int]:
    """A name, bytes, FLOPs. In the name: M x N x K, the transposed operands, what is added."""
    M, N = out.shape[-2:]
    K = a.shape[-2 if how.get("transpose_a") else -1]
    several = math.prod(out.shape[:-2])
    name = f"product {f'{several} x ' if several > 1 else ''}{M} x {N} x {K}"
    operands = "".join(x + "'" * bool(how.get(f"transpose_{x}")) for x in ("a", "b"))
    added = " + bias" if how.get("bias") is not None else " + out" if how.get("add") else ""
    return f"{name} {operands}{added}", a.nbytes + b.nbytes + out.nbytes, 2 * several * M * N * K
