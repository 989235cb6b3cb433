"""A safetensors file as tensors that live on disk, of which any number of ranks read and write parts.

The format: 8 bytes, the length n of the header as uint64; n bytes of JSON, {name: {dtype, shape,
data_offsets}}, padded with spaces; then the tensors, C order, little-endian, without gaps.

Parts are read and written by position (pread, pwrite), not through a mapping: what goes wrong is then an
error and not a signal, ranks may live on several machines, and memory stays what the caller asked for.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from minitrain.arrays.blocks import row_blocks
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
LONGEST_HEADER = 16 << 20  # bytes: a hundred thousand tensors; a parser may need many times as much


class Kind(NamedTuple):
    """What is known of a tensor before it exists."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class StoredTensor(NamedTuple):
    """A tensor in a file, seen as rows: its first dimension, and all others as columns."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int  # of its first byte in the file

    @property
    def n_columns(self) -> int:
        return math.prod(self.shape[1:])

    def read(self, rows: Array, columns: slice) -> Array:
        """Those rows, in the order of `rows`, and of them those columns: [len(rows), columns], a copy.

        Raises CheckpointError if the file cannot be read, or has become shorter than its header says.
        """
        values = np.empty((len(rows), columns.stop - columns.start), self.dtype)
        self.read_into(rows, columns, values)
        return values

    def read_into(self, rows: Array, columns: slice, values: Array) -> None:
        """The same into `values`, C-contiguous and of the tensor's type. Raises CheckpointError."""
        try:
            with _opened(self.path, os.O_RDONLY) as file:
                for block in _blocks(rows, values):
                    part = values[block]  # a view, or a copy if rows are out of order
                    for offset, span in self._spans(rows[block], columns):
                        _read_at(file, offset, part[span])
                    if not isinstance(block, slice):
                        values[block] = part
        except OSError as problem:
            what = f"the file cannot be read ({problem.strerror or problem})"
            raise CheckpointError(what, str(self.path), "copy it again from where it came") from None

    def write(self, rows: Array, columns: slice, values: Array) -> None:
        """`values` [len(rows), columns], of any float type, go to those rows and columns. Raises OSError."""
        with _opened(self.path, os.O_WRONLY) as file:
            for block in _blocks(rows, values):
                part = np.ascontiguousarray(values[block], self.dtype)
                for offset, span in self._spans(rows[block], columns):
                    _write_at(file, offset, part[span])

    def _spans(self, rows: Array, columns: slice) -> Iterator[tuple[int, slice]]:
        """Where in the file those ascending rows lie, and which of them: as few runs of bytes as possible."""
        whole_rows = columns.stop - columns.start == self.n_columns
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1 if whole_rows else np.arange(1, len(rows))
        bounds = [0, *breaks.tolist(), len(rows)]
        for start, stop in itertools.pairwise(bounds):
            first = int(rows[start]) * self.n_columns + columns.start
            yield self.offset + first * self.dtype.itemsize, slice(start, stop)


def create(path: Path, tensors: Mapping[str, Kind]) -> None:
    """Writes the header and reserves the space, so that a full disk is found now. Raises OSError."""
    codes = {dtype: code for code, dtype in FLOATS.items()}
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        if end and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 8 + len(text), end)
        else:
            file.truncate(8 + len(text) + end)


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """What the file holds, by name. Raises CheckpointError where it is absent or damaged."""
    if not path.is_file():
        raise CheckpointError("the file is not there", str(path), "complete the directory, or copy it again")
    try:
        with _opened(path, os.O_RDONLY) as file:
            length = int.from_bytes(os.pread(file, 8, 0), "little")
            if length > LONGEST_HEADER:
                raise ValueError(f"its header of {length} bytes is longer than {LONGEST_HEADER}")
            with safe_open(path, framework="numpy"):
                pass  # the library has checked sizes, types, offsets, overlaps and gaps
            header = json.loads(os.pread(file, length, 8))
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
    except (SafetensorError, ValueError, OSError) as problem:
        what = f"the file cannot be read as safetensors ({' '.join(str(problem).split())})"
        raise CheckpointError(what, str(path), "copy it again from where it came") from None


def _stored(path: Path, data: int, entry: dict[str, Any]) -> StoredTensor:
    """The tensor that an entry of the header describes, which may have more fields than these."""
    known = FLOATS | OTHERS
    if entry["dtype"] not in known:
        raise ValueError(f"type {entry['dtype']} is none of {', '.join(known)}")
    return StoredTensor(path, tuple(entry["shape"]), known[entry["dtype"]], data + entry["data_offsets"][0])


def _blocks(rows: Array, values: Array) -> Iterator[slice | Array]:
    """Which of `rows` to move next: cache-sized blocks, in the order in which they lie in the file.

    Small ones, as a file takes one write at a time, and those of many ranks interleave.
    """
    if values.size == 0:
        return
    order = None if (np.diff(rows) > 0).all() else np.argsort(rows)
    for block in row_blocks(len(rows), values.shape[1] * values.itemsize):
        yield block if order is None else order[block]


def _read_at(file: int, offset: int, target: Array) -> None:
    buffer = target.reshape(-1).view(np.uint8).data
    while buffer:
        n = os.preadv(file, [buffer], offset)
        if n == 0:
            raise OSError("it ends before its tensors do")
        buffer, offset = buffer[n:], offset + n


def _write_at(file: int, offset: int, values: Array) -> None:
    buffer = values.reshape(-1).view(np.uint8).data
    while buffer:
        n = os.pwrite(file, buffer, offset)
        buffer, offset = buffer[n:], offset + n


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[int]:
    file = os.open(path, mode | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
