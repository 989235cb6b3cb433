"""The order of what happens when one rank of several fails."""

import sys
import time

import pytest

from minitrain.comm.single import SingleComm
from minitrain.errors import ConfigError, Problem
from minitrain.failure import GRACE, OF_CUDA, exit_code_of, fail


def cupy_error(name: str, base: type[Exception], text: str) -> Exception:
    """As CuPy names its errors, which need not be installed here."""
    kind: type[Exception] = type(name, (base,), {})
    return kind(text)


OF_CUPY = "Out of memory allocating 2,048 bytes (allocated so far: 512 bytes)."
OF_CUDA_MEMORY = "cudaErrorMemoryAllocation: out of memory"
SMALLER = "lower train.micro_batch or the model's sizes, or split it over more ranks (tp, pp, zero)"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (
            cupy_error("OutOfMemoryError", MemoryError, OF_CUPY),
            2,
            f"out of memory: {OF_CUPY}; unknown place; {SMALLER}",
        ),
        (
            cupy_error("CUDARuntimeError", RuntimeError, OF_CUDA_MEMORY),
            2,
            f"out of memory: {OF_CUDA_MEMORY}; unknown place; {SMALLER}",
        ),
        (
            cupy_error("CUDADriverError", RuntimeError, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
            2,
            f"out of memory: CUDA_ERROR_OUT_OF_MEMORY: out of memory; unknown place; {SMALLER}",
        ),
        (RuntimeError("cublasLtCreate: CUBLAS_STATUS_ALLOC_FAILED"), 2, "out of memory: cublasLtCreate: "),
        (
            cupy_error("CUDARuntimeError", RuntimeError, "cudaErrorIllegalAddress: an illegal access"),
            6,
            "CUDARuntimeError: cudaErrorIllegalAddress: an illegal access; unknown place; "
            "a GPU tells of it late: run again with CUDA_LAUNCH_BLOCKING=1 and --debug for the place",
        ),
        (RuntimeError("no memory of it"), 6, "RuntimeError: no memory of it; unknown place; run again with"),
        (ValueError(OF_CUDA_MEMORY), 6, f"ValueError: {OF_CUDA_MEMORY}; unknown place; run again with"),
    ],
)
def test_what_a_gpu_says_is_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error, SingleComm(), debug=False) == code
    err = capsys.readouterr().err
    assert err.startswith(f"minitrain: error: {line}") and err.count("\n") == 1


def test_cupys_errors_are_named_so() -> None:
    pytest.importorskip("cupy", reason="needs CuPy: pip install 'minitrain[cupy]'", exc_type=ImportError)
    from cupy.cuda.memory import OutOfMemoryError
    from cupy_backends.cuda.api import driver, runtime

    assert issubclass(OutOfMemoryError, MemoryError)
    assert {runtime.CUDARuntimeError.__name__, driver.CUDADriverError.__name__} == set(OF_CUDA)
    assert issubclass(runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(driver.CUDADriverError, RuntimeError)
    assert exit_code_of(OutOfMemoryError(2048, 512)) == 2
    assert exit_code_of(runtime.CUDARuntimeError(2)) == 2
    assert exit_code_of(runtime.CUDARuntimeError(700)) == 6


class TwoRanks(SingleComm):
    """Rank 0 of two; remembers how the job was ended, and when."""

    size = 2

    def abort(self, exit_code: int) -> None:
        self.ended = exit_code, time.monotonic()


class Listener:
    """A standard error that remembers when it was written to."""

    def __init__(self) -> None:
        self.text, self.last = "", 0.0

    def write(self, text: str) -> None:
        self.text, self.last = self.text + text, time.monotonic()

    def flush(self) -> None:
        pass


def test_the_launcher_has_time_to_pass_the_line_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its own words about the end may come first, and our line does not begin a line."""
    world, listener = TwoRanks(), Listener()
    monkeypatch.setattr(sys, "stderr", listener)
    fail(ConfigError([Problem("a", "b", "c")]), world, debug=False)
    code, moment = world.ended
    assert code == 2 and listener.text == "minitrain: error: rank 0: a; b; c\n"
    assert moment - listener.last >= GRACE
