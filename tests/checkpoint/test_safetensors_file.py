import errno
import json
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitrain.checkpoint.safetensors_file import create, map_tensors
from minitrain.errors import CheckpointError

SHAPES = {"a": (3, 5), "b": (7,), "c.weight": (2, 3, 4)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_library_reads_what_we_write(dtype: type, tmp_path: Path) -> None:
    path, rng = tmp_path / "x.safetensors", np.random.default_rng(0)
    create(path, SHAPES, np.dtype(dtype))
    values = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    ours = map_tensors(path, writable=True)
    for name, tensor in ours.items():
        assert not tensor.any() and tensor.flags.aligned
        tensor[:] = values[name]
    theirs = load_file(path)
    assert set(theirs) == set(SHAPES)
    for name in SHAPES:
        assert theirs[name].dtype == dtype and np.array_equal(theirs[name], values[name])


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.safetensors", np.random.default_rng(0)
    types = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64, np.uint8)
    values = {str(i): rng.normal(size=(3, i + 1)).astype(dtype) for i, dtype in enumerate(types)}
    save_file(values, path)
    ours = map_tensors(path)
    assert set(ours) == set(values)
    for name, value in values.items():
        assert ours[name].dtype == value.dtype and np.array_equal(ours[name], value)
        assert not ours[name].flags.writeable


def raw(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


DAMAGED = {
    "empty": b"",
    "short": b"\1\0\0",
    "text": b"not a safetensors file at all",
    "header beyond the end": (1000).to_bytes(8, "little") + b"{}",
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "truncated": raw({"a": entry(0, 8)}, b"\0" * 7),
    "too long": raw({"a": entry(0, 8)}, b"\0" * 9),
    "shape": raw({"a": entry(0, 8, shape=(3,))}, b"\0" * 8),
    "negative": raw({"a": entry(-8, 8)}, b"\0" * 8),
    "overlap": raw({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
    "gap": raw({"a": entry(0, 8), "b": entry(12, 20)}, b"\0" * 20),
    "unknown type": raw({"a": entry(0, 8, dtype="X32")}, b"\0" * 8),
    "type without numbers here": raw({"a": entry(0, 2, dtype="F8_E4M3")}, b"\0" * 2),
    "pickle": pickle.dumps({"a": np.zeros(2)}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(CheckpointError, match=r"cannot be read as safetensors .*x\.safetensors; ") as error:
        map_tensors(path)
    assert "\n" not in str(error.value)


def test_absent_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
    for name in ("no.safetensors", "pipe.safetensors", "."):
        with pytest.raises(CheckpointError, match="the file is not there"):
            map_tensors(tmp_path / name)


def test_the_space_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a full disk would kill the process by SIGBUS at a write into the mapping."""
    path = tmp_path / "x.safetensors"
    create(path, {"a": (1 << 20,)}, np.dtype(np.float32))
    assert path.stat().st_blocks * 512 >= 4 << 20

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        create(path, {"a": (4,)}, np.dtype(np.float32))
