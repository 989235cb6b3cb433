"""fake_cublaslt.cpp as a library, compiled by g++ once for a process."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from cuda.emulator import headers

from minitrain.ops.cuda.cublaslt import CublasLt

STREAM = 0x5EED
WORKSPACE = 4096  # bytes


@cache
def library():
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "libcublasLt.so"
        source = Path(__file__).with_name("fake_cublaslt.cpp")
        options = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-ffp-contract=off", f"-isystem{headers()}"]
        subprocess.run(["g++", *options, "-o", path, source], check=True)
        return ctypes.CDLL(str(path))


def cublaslt():
    """The binding, on the host's memory."""
    workspace = np.zeros(WORKSPACE, np.uint8)
    return CublasLt(library(), lambda x: x.ctypes.data, lambda: STREAM, workspace)


def seen(name):
    """A counter of the fake's."""
    return ctypes.c_int64.in_dll(library(), f"seen_{name}").value
