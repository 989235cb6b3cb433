"""Safetensors files, taken apart and put together again with anything wrong in them."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from fuzz.mutations import DEEP, TEXTS, Raw, Rng, bend, extreme, json_text, pick

TYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
OTHER_TYPES = ("I32", "U32", "I16", "U16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "f32", "")


class Parts(NamedTuple):
    """A file: its header, as a tree, and what comes after."""

    header: dict[str, Any]
    data: bytes

    @staticmethod
    def of(raw: bytes) -> "Parts":
        n = int.from_bytes(raw[:8], "little")
        return Parts(json.loads(raw[8 : 8 + n]), raw[8 + n :])

    @property
    def tensors(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    def values(self, name: str) -> np.ndarray:
        entry = self.header[name]
        start, stop = entry["data_offsets"]
        return np.frombuffer(self.data[start:stop], TYPES[entry["dtype"]]).reshape(entry["shape"])

    def raw(self) -> bytes:
        return joined(json_text(self.header).encode(errors="surrogatepass"), self.data)


def joined(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def assembled(values: dict[str, np.ndarray], metadata: object = None) -> bytes:
    """A file that is right."""
    codes = {dtype: code for code, dtype in TYPES.items()}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, value in values.items():
        start, data = len(data), data + value.tobytes()
        header[name] = {"dtype": codes[value.dtype], "shape": value.shape, "data_offsets": [start, len(data)]}
    return Parts(header, data).raw()


def bent(raw: bytes, rng: Rng) -> bytes:
    """A file with another header, or with other tensors behind it."""
    return pick(rng, WAYS)(Parts.of(raw), rng)


def _bend_header(file: Parts, rng: Rng) -> bytes:
    for _ in range(int(rng.integers(1, 3))):
        bend(file.header, rng)
    return file.raw()


def _change_type(file: Parts, rng: Rng) -> bytes:
    file.header[pick(rng, file.tensors)]["dtype"] = pick(rng, [*TYPES, *OTHER_TYPES])
    return file.raw()


def _change_number(file: Parts, rng: Rng) -> bytes:
    entry = file.header[pick(rng, file.tensors)]
    field = pick(rng, ["shape", "data_offsets"])
    entry[field] = [*entry[field]]
    entry[field][int(rng.integers(len(entry[field])))] = extreme(rng)
    return file.raw()


def _change_shape(file: Parts, rng: Rng) -> bytes:
    """The same number of elements, or not."""
    entry = file.header[pick(rng, file.tensors)]
    shape = entry["shape"]
    others = [
        [*reversed(shape)],
        [1, *shape],
        [*shape, 1],
        [int(np.prod(shape))],
        [0],
        [],
        [2**32, 2**32],
        [*shape, 0],
    ]
    entry["shape"] = pick(rng, others)
    return file.raw()


def _overlap(file: Parts, rng: Rng) -> bytes:
    header = file.header
    header[pick(rng, file.tensors)]["data_offsets"] = header[pick(rng, file.tensors)]["data_offsets"]
    return file.raw()


def _duplicate(file: Parts, rng: Rng) -> bytes:
    """The same name twice."""
    name, entry = pick(rng, file.tensors), pick(rng, file.tensors)
    text = json_text(file.header)[:-1] + f", {json.dumps(name)}: {json.dumps(file.header[entry])}}}"
    return joined(text.encode(), file.data)


def _add_field(file: Parts, rng: Rng) -> bytes:
    file.header[pick(rng, file.tensors)][pick(rng, ["path", "data", "offset", "x", "dtype "])] = extreme(rng)
    return file.raw()


def _add_tensor(file: Parts, rng: Rng) -> bytes:
    names = (
        "lm_head.weight",
        "fp8.layers.0.attn.q",
        "fp8.x",
        "h.0.attn.bias",
        "m.x",
        "../../elsewhere/canary.txt",
    )
    name, model = pick(rng, [*names, *TEXTS, *file.tensors]), file.header[pick(rng, file.tensors)]["shape"]
    shape = pick(rng, [[], [0], [5, 0], [1], [3, 16], model])
    values = rng.normal(size=shape).astype(TYPES[pick(rng, [*TYPES])])
    code = next(code for code, dtype in TYPES.items() if dtype == values.dtype)
    offsets = [len(file.data), len(file.data) + values.nbytes]
    file.header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
    return file._replace(data=file.data + values.tobytes()).raw()


def _remove_tensor(file: Parts, rng: Rng) -> bytes:
    values = {name: file.values(name) for name in file.tensors}
    del values[pick(rng, file.tensors)]
    return assembled(values)


def _change_length(file: Parts, rng: Rng) -> bytes:
    text = json_text(file.header).encode()
    n = len(text)
    lengths = [0, 1, 2, n - 1, n + 1, n + 8, n + len(file.data), (16 << 20) - 1, 16 << 20, (16 << 20) + 1]
    return joined(text, file.data, pick(rng, [*lengths, 99_000_000, 2**31, 2**32, 2**63, 2**64 - 1]))


def _bury_header(file: Parts, rng: Rng) -> bytes:
    """Nothing that a parser likes."""
    text = json_text(file.header)
    deep = "[" * DEEP + "]" * DEEP
    texts = (
        "",
        "{",
        "[]",
        "null",
        deep,
        '{"a":' * DEEP,
        text + "}",
        text[:-1],
        text + "\0" * 100,
        f"[{text}]",
    )
    invalid = text.encode().replace(b"weight", b"w\xff\xfe\xc0ght")
    return joined(pick(rng, [*(t.encode() for t in texts), invalid]), file.data)


def _lengthen_header(file: Parts, rng: Rng) -> bytes:
    """Legal, and long: half a megabyte of names."""
    file.header["__metadata__"] = {f"{i:05}": "x" * 20 for i in range(12_000)}
    return file.raw()


def _poison(file: Parts, rng: Rng) -> bytes:
    """Numbers that are none, or far too large, among the values."""
    values = {name: file.values(name).copy() for name in file.tensors}
    name = pick(rng, file.tensors)
    limits = ml_dtypes.finfo(values[name].dtype)
    bad = [np.nan, np.inf, -np.inf, limits.max, limits.min, limits.tiny]
    flat = values[name].reshape(-1)
    flat[int(rng.integers(flat.size))] = pick(rng, bad)
    return assembled(values)


def _reorder(file: Parts, rng: Rng) -> bytes:
    """The same tensors in another order: nothing is wrong."""
    names = [file.tensors[i] for i in rng.permutation(len(file.tensors))]
    return assembled({name: file.values(name) for name in names}, {"by": "another program"})


def _widen(file: Parts, rng: Rng) -> bytes:
    """The same values in fp64: nothing is wrong."""
    return assembled({name: file.values(name).astype(np.float64) for name in file.tensors})


def _pad(file: Parts, rng: Rng) -> bytes:
    """Blanks after the header: nothing is wrong."""
    return joined(json_text(file.header).encode() + b" " * int(rng.integers(100)), file.data)


def _add_metadata(file: Parts, rng: Rng) -> bytes:
    file.header["__metadata__"] = pick(rng, [{"a": "b"}, {}, {"a": extreme(rng)}, Raw("null"), extreme(rng)])
    return file.raw()


WAYS: list[Callable[[Parts, Rng], bytes]] = [
    _bend_header, _bend_header, _change_type, _change_number, _change_shape, _overlap, _duplicate, _add_field,
    _add_tensor, _remove_tensor, _change_length, _bury_header, _lengthen_header, _poison, _reorder, _widen,
    _pad, _add_metadata,
]  # fmt: skip
