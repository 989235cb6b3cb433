"""Compiles the package's CUDA sources as CuPy does on a GPU, with neither of them: by NVRTC, to cubins.

A source says in comment lines what it is compiled for:

    // types: T = double | float | __half | __nv_bfloat16; G = T | float
    // needs: sm_90a
    // no spills

`types` has every set of types that the Python side asks for: the product of all choices, where the name of a
type to the left stands for its value, so that there are seven here. Several such lines count together, and
`none` stands for a source without. `needs` takes the place of ARCHITECTURES. With `no spills`, registers that
ptxas moves to memory are an error.
"""

import ctypes
import itertools
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from minitrain.arrays.kernels import INCLUDED, PACKAGE, options, preamble

ARCHITECTURES = ("sm_80", "sm_90")
HEADERS = ("cuda_bf16.h", "crt/host_defines.h", "nv/target")  # one of each wheel that has some
FILES = ("lib/libnvrtc.so.13", *(f"include/{header}" for header in HEADERS))

_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(')
_PTXAS = re.compile(
    r"Compiling entry function '(?P<entry>\w+)'"
    r"|(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"|Used (?P<registers>\d+) registers"
)


class RefusedError(Exception):
    """What the compiler says of a source: errors and warnings, each with its file and line."""


class Kernel(NamedTuple):
    """What ptxas made of one."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that are stored to memory and loaded again


def sources() -> list[str]:
    """Paths below the package: `ops/cuda/norm.cu`."""
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.cu"))


def kernels(text: str) -> list[str]:
    return _KERNEL.findall(text)


def architectures(text: str) -> tuple[str, ...]:
    needs = re.search(r"^// needs: (.+)$", text, re.MULTILINE)
    return tuple(needs[1].split()) if needs else ARCHITECTURES


def may_spill(text: str) -> bool:
    return not re.search(r"^// no spills$", text, re.MULTILINE)


def combinations(text: str) -> list[dict[str, str]]:
    """The sets of types of a source, as in `[{"T": "double", "G": "double"}, ...]`, each once."""
    lines = re.findall(r"^// types: (.+)$", text, re.MULTILINE)
    if not lines:
        raise ValueError("no line like `// types: T = double | float` says what the source is compiled for")
    found: list[dict[str, str]] = []
    for line in lines:
        choices: list[tuple[str, list[str]]] = []
        for choice in line.split(";") if line.strip() != "none" else []:
            name, _, values = choice.partition("=")
            choices.append((name.strip(), [value.strip() for value in values.split("|")]))
        for values in itertools.product(*(values for _, values in choices)):
            types: dict[str, str] = {}
            for (name, _), value in zip(choices, values, strict=True):
                types[name] = types.get(value, value)
            if types not in found:
                found.append(types)
    return found


def missing() -> str:
    """Why nothing can be compiled here; empty if it can."""
    return "" if toolkit() else "needs NVRTC: pip install 'minitrain[kernels]', or scripts/test --parity"


def compiled(text: str, types: Mapping[str, str], arch: str, name: str = "kernels.cu") -> dict[str, Kernel]:
    """The kernels of the cubin of a source for an architecture.

    Raises RefusedError for errors, and for warnings.
    """
    nvrtc, program, wheels = _nvrtc(), ctypes.c_void_p(), toolkit()
    arguments = [
        *("-std=c++17", "-ftz=true", "--device-as-default-execution-space", f"-arch={arch}"),  # as CuPy
        *(f"-I{INCLUDED}", f"-I{wheels}/include", "--ptxas-options=-v", *options(text)),
    ]
    code, arguments = (preamble(types, name) + text).encode(), [option.encode() for option in arguments]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, name.encode(), 0, None, None)
    try:
        status = nvrtc.nvrtcCompileProgram(
            program, len(arguments), (ctypes.c_char_p * len(arguments))(*arguments)
        )
        log = _read(program, "ProgramLog").rstrip(b"\0").decode()
        if status or "warning" in log:
            raise RefusedError(f"{arch}, {dict(types)}:\n{log}")
        found, cubin = _usage(log), _read(program, "CUBIN")
        absent = [kernel for kernel in found if f".text.{kernel}\0".encode() not in cubin]
        assert cubin[:4] == b"\x7fELF" and not absent, f"not in the cubin: {absent}"
        return found
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _usage(log: str) -> dict[str, Kernel]:
    """Functions that a kernel calls follow it in the log, and their spills are its own."""
    found: dict[str, Kernel] = {}
    for line in _PTXAS.finditer(log):
        if line["entry"]:
            entry = line["entry"]
            found[entry] = Kernel(0, 0)
        elif line["registers"]:
            found[entry] = found[entry]._replace(registers=int(line["registers"]))
        else:
            spilled = found[entry].spilled + int(line["stores"]) + int(line["loads"])
            found[entry] = found[entry]._replace(spilled=spilled)
    return found


def toolkit() -> Path | None:
    """Where the wheels of NVIDIA's CUDA 13 put `lib` and `include`."""
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        wheels = Path(place) / "cu13"
        if all((wheels / file).exists() for file in FILES):
            return wheels
    return None


@cache
def _nvrtc() -> ctypes.CDLL:
    wheels = toolkit()
    assert wheels, missing()
    for builtins in wheels.glob("lib/libnvrtc-builtins.so.13.*"):  # before NVRTC looks for it elsewhere
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(wheels / "lib/libnvrtc.so.13"))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    """The program's `ProgramLog` or `CUBIN`: first its size, then itself."""
    size = ctypes.c_size_t()
    getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_nvrtc(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
