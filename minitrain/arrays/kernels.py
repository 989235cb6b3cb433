"""The text of a CUDA source as it is compiled: first what T, G, ... stand for, then the file itself.

The names are types and constants, not macros: the compiler's own headers have `template <typename T>`.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from minitrain.arrays.types import DType

PACKAGE = Path(__file__).parent.parent
INCLUDED = PACKAGE / "arrays"  # where the headers are: common.cuh, tensor_core.cuh

CUDA_NAMES = {
    "float64": "double",
    "float32": "float",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "int64": "long long",
    "int32": "int",
    "uint8": "unsigned char",
}


def cuda_name(value: DType | int) -> str:
    """What a type, or a whole number, is called in CUDA."""
    return str(value) if isinstance(value, int) else CUDA_NAMES[value.name]


def kernel_text(source: str, names: Mapping[str, str]) -> str:
    """`source` is a path below the package; `names` what to call what: {"T": "double"}."""
    return preamble(names, source) + (PACKAGE / source).read_text()


def options(text: str) -> tuple[str, ...]:
    """What a source asks of the compiler. `// no fma`: that it makes no product and sum to one operation, so
    that every element of a vector is rounded alike, wherever it lies, and as NumPy does.
    """
    return ("-fmad=false",) if re.search(r"^// no fma$", text, re.MULTILINE) else ()


def preamble(names: Mapping[str, str], source: str) -> str:
    """What stands in front of a source. Compilers' messages count lines from the file's own first."""
    lines = ["#include <cuda_bf16.h>", "#include <cuda_fp16.h>", f"// headers {_digest()}"]
    for name, value in names.items():
        lines.append(f"constexpr int {name} = {value};" if value.isdigit() else f"using {name} = {value};")
    return "\n".join([*lines, f'#line 1 "{source}"', ""])


@cache
def _digest() -> str:
    """Of what sources include: CuPy keeps what it has compiled by the text alone, not by included files."""
    headers = b"".join(path.read_bytes() for path in sorted(INCLUDED.glob("*.cuh")))
    return hashlib.sha256(headers).hexdigest()[:16]
