"""Damage, by chance and by design: to bytes, to values of JSON, to the entries of a directory.

Everything is drawn from the generator that a function is given, so a case is a function of its number.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")

DEEP = 100_000  # levels, far beyond any stack
SPARSE = 300 << 20  # bytes that a file can have and take no space


def pick(rng: Rng, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


# Of bytes


def damaged(data: bytes, rng: Rng, others: Sequence[bytes] = (b"",)) -> bytes:
    """`data`, otherwise. `others` are contents of other files, to be mixed in."""
    return pick(rng, BYTES)(data, rng, pick(rng, others))


def _flip(data: bytes, rng: Rng, other: bytes) -> bytes:
    raw = bytearray(data or b"\0")
    for _ in range(int(rng.integers(1, 9))):
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return bytes(raw)


def _overwrite(data: bytes, rng: Rng, other: bytes) -> bytes:
    start, n = _place(data, rng)
    return data[:start] + _filling(rng, n) + data[start + n :]


def _insert(data: bytes, rng: Rng, other: bytes) -> bytes:
    start, n = _place(data, rng)
    return data[:start] + _filling(rng, n) + data[start:]


def _remove(data: bytes, rng: Rng, other: bytes) -> bytes:
    start, n = _place(data, rng)
    return data[:start] + data[start + n :]


def _repeat(data: bytes, rng: Rng, other: bytes) -> bytes:
    start, n = _place(data, rng)
    return data[: start + n] + data[start:]


def _truncate(data: bytes, rng: Rng, other: bytes) -> bytes:
    return data[: -1 - int(rng.integers(len(data)))] if data else data


def _extend(data: bytes, rng: Rng, other: bytes) -> bytes:
    return data + _filling(rng, int(rng.integers(1, 5000)))


def _splice(data: bytes, rng: Rng, other: bytes) -> bytes:
    return data[: _place(data, rng)[0]] + other[_place(other, rng)[0] :]


def _replace(data: bytes, rng: Rng, other: bytes) -> bytes:
    return pick(
        rng, [b"", b"\0", b"{}", b"[]", b"null", pickle.dumps(_Bomb()), b"PK\x03\x04", rng.bytes(100), other]
    )


def _encode(data: bytes, rng: Rng, other: bytes) -> bytes:
    text = data.decode("latin-1")
    return pick(rng, [b"\xef\xbb\xbf" + data, text.encode("utf-16"), text.encode("utf-32-le")])


BYTES: list[Callable[[bytes, Rng, bytes], bytes]] = [
    _flip, _flip, _overwrite, _insert, _remove, _repeat, _truncate, _extend, _splice, _replace, _encode,
]  # fmt: skip


class _Bomb:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("unpickled", "w")


def _place(data: bytes, rng: Rng) -> tuple[int, int]:
    """Where to begin, and a number of bytes: small ones are as likely as large ones."""
    start = int(rng.integers(len(data) + 1))
    return start, 1 + int(len(data) ** rng.random())


def _filling(rng: Rng, n: int) -> bytes:
    return pick(rng, [rng.bytes(n), bytes(n), b"\xff" * n, (b"0123456789" * n)[:n], (b'[{",}]' * n)[:n]])


# Of JSON

SCALARS = (
    "null", "true", "false", "0", "1", "-1", "2", "3", "7", "1.5", "0.0", "-0.0", "1e-400", "1e400", "-1e400",
    "NaN", "Infinity", "-Infinity", "1e308", "-1e-300", "65536", "10000", "1000000000", "1000000001",
    str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64), "9" * 400,
    "9" * 5000,
)  # fmt: skip
TEXTS = (
    "", " ", "x", "1", "true", "null", "NaN", "fp16", "fp64", "adam", "lion", "gpt2", "llama", "auto", "no",
    ".", "..", "../elsewhere", "../../elsewhere/canary.txt", "a/b", "/", "~", "x" * 300, "x/" * 3000,
    "x" * 100_000, "a\0b", "\x1b[2J\r\nminitrain: done", "\ud800", "\udcff", "Käse 中文 🧀", "٣", "%s%n{0}",
    "-1", "--debug", "step-00000001", "model.safetensors", "manifest.json", "__metadata__", "F64", "BF16",
    "I32",
)  # fmt: skip
NESTS = (
    "[]", "{}", "[[]]", "[0]", "[1,2]", "[0.9,0.95]", "[0.9]", '[""]', '{"":0}', '{"a":{"a":1}}',
    "[" + "0," * 10_000 + "0]", *("[" * n + "]" * n for n in (200, 900, 970, 990, DEEP)),
    '{"a":' * 950 + "0" + "}" * 950, '{"a":' * DEEP, '{"a":0,"a":1}',
)  # fmt: skip


class Raw(str):
    """A piece of JSON to be written as it stands: what no Python value becomes."""


def extreme(rng: Rng) -> Any:
    """Any value that does not belong there."""
    kind = rng.random()
    if kind < 0.55:
        return Raw(pick(rng, SCALARS))
    return pick(rng, TEXTS) if kind < 0.85 else Raw(pick(rng, NESTS))


def json_text(tree: Any) -> str:
    """The text of a tree in which a value may be `Raw`."""
    raws: list[Raw] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value)
            return f"<raw {len(raws) - 1}>"
        if isinstance(value, dict):
            return {key: marked(entry) for key, entry in value.items()}
        return [marked(entry) for entry in value] if isinstance(value, list | tuple) else value

    text = json.dumps(marked(tree))
    for number, raw in enumerate(raws):
        text = text.replace(f'"<raw {number}>"', raw)
    return text


def bend(tree: Any, rng: Rng, within: Sequence[str] = ()) -> Any:
    """Changes a value or a key of a tree of dicts and lists, in place; only at or below the keys `within`, if
    any are given.
    """
    keys = [key for key in within if key in tree] or _keys(tree)
    places = [place for key in keys for place in _places(tree, key)]
    container, key = pick(rng, places)
    pick(rng, TREES)(container, key, rng, pick(rng, places))
    return tree


def _keys(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree)))


def _places(container: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    yield container, key
    if isinstance(container[key], dict | list):
        for inner in _keys(container[key]):
            yield from _places(container[key], inner)


def _set(container: Any, key: Any, rng: Rng, other: Any) -> None:
    container[key] = extreme(rng)


def _nudge(container: Any, key: Any, rng: Rng, other: Any) -> None:
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int | float):
        container[key] = pick(
            rng, [value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value)]
        )
    elif isinstance(value, str):
        container[key] = pick(rng, [value[:-1], value + "x", value.upper(), value[::-1], f" {value}"])
    else:
        container[key] = pick(rng, [None, [value], str(value)])


def _borrow(container: Any, key: Any, rng: Rng, other: Any) -> None:
    container[key] = json.loads(json.dumps(other[0][other[1]]))


def _drop(container: Any, key: Any, rng: Rng, other: Any) -> None:
    del container[key]


def _add(container: Any, key: Any, rng: Rng, other: Any) -> None:
    if isinstance(container, dict):
        container[pick(rng, TEXTS)] = pick(rng, [container[key], extreme(rng)])
    else:
        container.append(pick(rng, [container[key], extreme(rng)]))


def _rename(container: Any, key: Any, rng: Rng, other: Any) -> None:
    if isinstance(container, dict):
        container[pick(rng, TEXTS)] = container.pop(key)
    else:
        container.reverse()


TREES: list[Callable[[Any, Any, Rng, Any], None]] = [
    _set,
    _set,
    _set,
    _nudge,
    _nudge,
    _borrow,
    _drop,
    _add,
    _rename,
]


# Of a directory


Entry = Callable[[Path, Path, Path], None]
"""Does something to a file as a whole, perhaps with another; the last path is a directory outside."""


def disarranged(directory: Path, elsewhere: Path, rng: Rng) -> None:
    """Does something to an entry of `directory` as a whole. `elsewhere` is a directory outside of it."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    path, other = pick(rng, files), pick(rng, files)
    action = pick(rng, ENTRIES)
    action(path, other, elsewhere)


def _delete(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()


def _make_directory(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    path.mkdir()


def link_outside(path: Path, other: Path, elsewhere: Path) -> None:
    shutil.move(path, elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def _link_to_canary(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    path.symlink_to("../" * 9 + str((elsewhere / "canary.txt").absolute()).lstrip("/"))


def _link_to_nothing(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _link_to_itself(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to_endless(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _make_pipe(path: Path, other: Path, elsewhere: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _empty(path: Path, other: Path, elsewhere: Path) -> None:
    path.write_bytes(b"")


def _exchange(path: Path, other: Path, elsewhere: Path) -> None:
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def _copy_over(path: Path, other: Path, elsewhere: Path) -> None:
    path.write_bytes(other.read_bytes())


def _stretch(path: Path, other: Path, elsewhere: Path) -> None:
    os.truncate(path, SPARSE)


def _add_file(path: Path, other: Path, elsewhere: Path) -> None:
    path.with_name(f"{path.name}.2").write_bytes(path.read_bytes())


def _claim_header(path: Path, other: Path, elsewhere: Path) -> None:
    """A header of 95 MB, which is less than the safetensors library allows, and takes no space."""
    path.write_bytes((95_000_000).to_bytes(8, "little") + b"{}")
    os.truncate(path, 8 + 95_000_000)


def _add_index(path: Path, other: Path, elsewhere: Path) -> None:
    names = ("../elsewhere/canary.txt", "x" * 300 + ".safetensors", "a\0.safetensors", path.name)
    mapped = {f"tensor {i}": name for i, name in enumerate(names)}
    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": mapped}))
    path.with_name("model.safetensors").unlink(missing_ok=True)


ENTRIES: list[Entry] = [
    _delete, _make_directory, link_outside, _link_to_canary, _link_to_nothing, _link_to_itself,
    _claim_header, _link_to_endless, _make_pipe, _empty, _exchange, _copy_over, _stretch, _add_file,
    _add_index,
]  # fmt: skip
HARMLESS = (_add_file,)


def name_of(entry: Entry) -> str:
    return entry.__name__.strip("_")
