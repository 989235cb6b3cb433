"""A safetensors file as a dict of arrays that live on disk: mapped, so that ranks read and write boxes.

The format: 8 bytes, the length n of the header as uint64; n bytes of JSON, {name: {dtype, shape,
data_offsets}}, padded with spaces; then the tensors, C order, little-endian, without gaps.
"""

import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from minitrain.arrays.types import Array
from minitrain.errors import CheckpointError

FLOATS: dict[str, np.dtype[np.generic]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
OTHERS: dict[str, np.dtype[np.generic]] = {  # not weights, but such buffers lie in some files
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
METADATA = {"format": "pt"}  # older versions of transformers refuse a file without it


def create(path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[np.generic]) -> None:
    """Write the header and reserve the space, so that a full disk is found now and not while mapped."""
    code = next(code for code, known in FLOATS.items() if known == dtype)
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 8 + len(text), end)
        else:
            file.truncate(8 + len(text) + end)


def map_tensors(path: Path, writable: bool = False) -> dict[str, Array]:
    """Every tensor of the file, a view of one mapping. Raises CheckpointError where absent or damaged."""
    if not path.is_file():
        raise CheckpointError("the file is not there", str(path), "complete the directory, or copy it again")
    try:
        with safe_open(
            path, framework="numpy"
        ):  # the library checks sizes, types, offsets, overlaps and gaps
            pass
        raw = np.memmap(path, np.uint8, mode="r+" if writable else "r")
        data = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:data].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(raw[data:], **entry) for name, entry in header.items()}
    except (SafetensorError, ValueError, OSError) as problem:
        what = f"the file cannot be read as safetensors ({' '.join(str(problem).split())})"
        raise CheckpointError(what, str(path), "copy it again from where it came") from None


def _view(data: Array, dtype: str, shape: list[int], data_offsets: list[int]) -> Array:
    start, stop = data_offsets
    known = FLOATS | OTHERS
    if dtype not in known:
        raise ValueError(f"type {dtype} is none of {', '.join(known)}")
    tensor: Array = data[start:stop].view(known[dtype]).reshape(shape)
    return tensor
