import errno
import json
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitrain.checkpoint.safetensors_file import Kind, StoredTensor, create, open_tensors
from minitrain.errors import CheckpointError

SHAPES = {"a": (3, 5), "b": (7,), "c.weight": (2, 3, 4)}


def kinds(dtype: np.dtype) -> dict[str, Kind]:
    return {name: Kind(shape, dtype) for name, shape in SHAPES.items()}


def whole(tensor: StoredTensor) -> np.ndarray:
    rows = np.arange(tensor.shape[0])
    return tensor.read(rows, slice(0, tensor.n_columns)).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_library_reads_what_we_write(dtype: type, tmp_path: Path) -> None:
    path, rng = tmp_path / "x.safetensors", np.random.default_rng(0)
    create(path, kinds(np.dtype(dtype)))
    values = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    for name, tensor in open_tensors(path).items():
        assert not whole(tensor).any()
        rows = np.arange(tensor.shape[0])
        tensor.write(rows, slice(0, tensor.n_columns), values[name].reshape(len(rows), -1))
    theirs = load_file(path)
    assert set(theirs) == set(SHAPES)
    for name in SHAPES:
        assert theirs[name].dtype == dtype and np.array_equal(theirs[name], values[name])


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.safetensors", np.random.default_rng(0)
    types = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64, np.uint8)
    values = {str(i): rng.normal(size=(3, i + 1)).astype(dtype) for i, dtype in enumerate(types)}
    save_file(values, path)
    ours = open_tensors(path)
    assert set(ours) == set(values)
    for name, value in values.items():
        assert ours[name].dtype == value.dtype and np.array_equal(whole(ours[name]), value)


@pytest.mark.parametrize("n_rows, n_columns", [(7, 5), (1, 9), (9, 1), (3000, 90)])  # one or more blocks
def test_parts_in_any_order(n_rows: int, n_columns: int, tmp_path: Path) -> None:
    """Rows and columns of a tensor, read and written, are those of an array in memory."""
    path, rng = tmp_path / "x.safetensors", np.random.default_rng(0)
    shapes = {"before": (3, 3), "x": (n_rows, n_columns), "after": (5,)}
    create(path, {name: Kind(shape, np.dtype(np.float32)) for name, shape in shapes.items()})
    tensor, memory = open_tensors(path)["x"], np.zeros((n_rows, n_columns), np.float32)
    for _ in range(30):
        rows = rng.permutation(n_rows)[: rng.integers(0, n_rows + 1)]
        if rng.random() < 0.5:
            rows.sort()
        if rng.random() < 0.3:
            rows = np.arange(rows.min(initial=0), rows.max(initial=0))
        start, stop = sorted(rng.integers(0, n_columns + 1, 2).tolist())
        columns = slice(0, n_columns) if rng.random() < 0.3 else slice(start, stop)
        values = rng.normal(size=(columns.stop - columns.start, len(rows))).T  # fp64, not contiguous
        tensor.write(rows, columns, values)
        memory[rows, columns] = values
        assert np.array_equal(whole(tensor), memory)
        assert np.array_equal(tensor.read(rows, columns), memory[rows, columns])
    others = load_file(path)
    assert not others["before"].any() and not others["after"].any()


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    create(path, kinds(np.dtype(np.float32)))
    tensor = open_tensors(path)["c.weight"]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"cannot be read \(it ends before its tensors do\)"):
        whole(tensor)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        whole(tensor)


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
    "header beyond reason": (17 << 20).to_bytes(8, "little") + b" " * (17 << 20),
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
        open_tensors(path)
    assert "\n" not in str(error.value)


def test_absent_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
    for name in ("no.safetensors", "pipe.safetensors", "."):
        with pytest.raises(CheckpointError, match="the file is not there"):
            open_tensors(tmp_path / name)


def test_the_space_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    create(path, {"a": Kind((1 << 20,), np.dtype(np.float32))})
    assert path.stat().st_blocks * 512 >= 4 << 20

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        create(path, {"a": Kind((4,), np.dtype(np.float32))})
