"""A GPU that is none: the package's kernels, compiled by g++ and run on the CPU, on NumPy's arrays.

Each launch works on copies with guards around (guarded.py).
"""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cuda import counts
from cuda.compiler import HEADERS, kernels, toolkit
from cuda.guarded import Guarded
from cuda.numpy_gemm import NumpyGemm

from minitrain.arrays.kernels import INCLUDED, PACKAGE, cuda_name, kernel_text

HERE = Path(__file__).parent


def headers() -> Path | None:
    """Where CUDA's own headers are: in wheels, or in a toolkit of the system."""
    places = [Path("/usr/local/cuda/include")]
    if wheels := toolkit():
        places.insert(0, wheels / "include")
    return next((place for place in places if all((place / header).exists() for header in HEADERS)), None)


def missing() -> str:
    """Why no kernel can run on this CPU; empty if they can."""
    if shutil.which("g++") is None:
        return "needs g++ to compile kernels for the CPU"
    if headers() is None:
        return "needs CUDA's headers: pip install 'minitrain[kernels]', or scripts/test --parity"
    return ""


_ONE_AT_A_TIME = threading.Lock()  # ranks may be threads, and a kernel's shared memory is static here

needs_emulator = pytest.mark.skipif(bool(missing()), reason=missing())


class Emulator:
    """A `Gpu` (minitrain/arrays/device.py) whose arrays are NumPy's."""

    xp = np

    def __init__(self) -> None:
        self.gemm = NumpyGemm()
        self.launches = 0

    def to_device(self, x: np.ndarray) -> np.ndarray:
        return x.copy()

    def synchronize(self) -> None:
        pass

    def launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, np.dtype | int],
        blocks: int | tuple[int, ...],
        threads: int,
        *args: np.ndarray | int | float | None,
    ) -> None:
        grid = (blocks,) if isinstance(blocks, int) else tuple(blocks)
        grid += (1,) * (3 - len(grid))
        assert all(0 < n for n in grid) and grid[0] < 2**31 and max(grid[1:]) < 65536, (
            f"{kernel}: grid {grid}"
        )
        assert threads % 32 == 0 and 0 < threads <= 1024, f"{kernel}: {threads} threads"
        self.launches += 1
        with _ONE_AT_A_TIME:
            self._launch(source, kernel, types, grid, threads, args)

    def _launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, np.dtype | int],
        grid: tuple[int, ...],
        threads: int,
        args: tuple[np.ndarray | int | float | None, ...],
    ) -> None:
        library = _library(source, tuple(sorted((name, cuda_name(value)) for name, value in types.items())))
        guarded = Guarded([a for a in args if isinstance(a, np.ndarray)])
        words = np.array([_word(a, guarded) for a in args], np.uint64)
        result = getattr(library, f"start_{kernel}")(
            (ctypes.c_int64 * 3)(*grid),
            *(ctypes.c_int64(threads), ctypes.c_int64(self.launches % 2)),
            *(words.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(words))),
        )
        assert result != 1, f"{kernel}: some threads wait at a barrier that others never come to"
        assert result != 2, f"{kernel}: {len(args)} arguments, but it takes another number"
        guarded.put_back(kernel)
        counts.ran(source, kernel, threads)

    def start_reading(self, x: np.ndarray) -> "_Read":
        return _Read(x.copy())


class _Read:
    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def wait(self) -> np.ndarray:
        return self._values


def _word(argument: np.ndarray | int | float | None, guarded: Guarded) -> np.uint64:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, np.uint64):  # an address
        return argument
    if isinstance(argument, np.ndarray):
        assert argument.ndim, "a kernel is given a scalar of NumPy: int or float is meant"
        return np.uint64(guarded.address(argument))
    if isinstance(argument, bool | int):
        return np.int64(argument).view(np.uint64)
    assert type(argument) is float, f"an argument of a kernel is a {type(argument).__name__}"
    return np.float64(argument).view(np.uint64)


@cache
def _library(source: str, names: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    """The source as a library for this CPU; each kernel NAME has a function start_NAME."""
    text = kernel_text(source, dict(names))
    code = ['#include "cuda_cpu.h"', text]
    for kernel in kernels(text):
        code.append(
            f'extern "C" int start_{kernel}(const int64_t* grid, int64_t threads, int64_t backwards,\n'
            f"    const uint64_t* words, int64_t n) {{\n"
            f"    return cpu::start({kernel}, grid, threads, backwards, words, n);\n}}"
        )
    return ctypes.CDLL(str(_compiled("\n".join(code))))


def _compiled(code: str) -> Path:
    """Compiled once on a machine: libraries are kept by their text and that of what they include."""
    digest = hashlib.sha256(code.encode() + (HERE / "cuda_cpu.h").read_bytes()).hexdigest()[:24]
    directory = Path(tempfile.gettempdir()) / "minitrain-kernels"
    directory.mkdir(exist_ok=True)
    library = directory / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=directory) as partial:
            path = Path(partial) / "kernels.cpp"
            path.write_text(code)
            options = [
                "-O1",
                "-std=c++17",
                "-shared",
                "-fPIC",
                "-w",
                "-fno-strict-aliasing",
                "-ffp-contract=off",
            ]
            options += ["-U_FORTIFY_SOURCE"]  # it takes jumps between fibres for an attack
            places = [f"-I{HERE}", f"-I{INCLUDED}", f"-isystem{headers()}", f"-I{PACKAGE}"]
            command = ["g++", *options, *places, "-o", str(path.with_suffix(".so")), str(path)]
            made = subprocess.run(command, capture_output=True, text=True)
            assert made.returncode == 0, made.stderr[:4000]
            path.with_suffix(".so").rename(library)
    return library
