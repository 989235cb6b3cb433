"""Texts and token files that were changed: a clean error, or the ids that are in the file.

The oracle reads them with nothing but `numpy.fromfile`, and cuts sequences by hand.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fuzz.campaign import campaign, run_cases
from fuzz.mutations import SPARSE, Rng, damaged, disarranged, pick
from fuzz.sandbox import Sandbox

from minitrain.config import DataConfig
from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokens import TokenFile, check_all_ids, open_tokens, split
from minitrain.errors import DataError

VOCAB, SEQ_LEN, HOLDOUT = 300, 8, 0.1
TEXT = "Im Anfang schuf Gott Himmel und Erde; 起初神創造天地 🧀\n" * 20
EXTREMES = (0, 1, -1, 2, 99, 255, 256, 1024, 20240519, 20240521, 2**31 - 1, -(2**31), 20240520, 1 << 20)


class Data(NamedTuple):
    """What a run would have of them."""

    ids: np.ndarray
    train: TokenFile
    batch: tuple[np.ndarray, np.ndarray]  # the first


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A directory with a text, and one with a token file."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("text", "tokens"):
        (root / name).mkdir()
    (root / "text" / "data.txt").write_text(TEXT, encoding="utf-8")
    ids = rng.integers(0, VOCAB, 700).astype("<u2")
    (root / "tokens" / "data.bin").write_bytes(with_header([20240520, 1, ids.size], ids.tobytes()))
    return [root / "text", root / "tokens"]


def with_header(numbers: list[int], data: bytes) -> bytes:
    header = np.zeros(256, "<i4")
    header[: len(numbers)] = numbers
    return header.tobytes() + data


def _bytes(path: Path, rng: Rng) -> None:
    path.write_bytes(damaged(path.read_bytes(), rng, [TEXT.encode(), bytes(2000)]))


def _number_of_header(path: Path, rng: Rng) -> None:
    raw = bytearray(path.read_bytes())
    place = 4 * int(rng.integers(3))
    raw[place : place + 4] = np.array(pick(rng, EXTREMES), "<i4").tobytes()
    path.write_bytes(raw)


def _number_of_tokens(path: Path, rng: Rng) -> None:
    """More or fewer of them, and the header knows or does not."""
    ids = np.frombuffer(path.read_bytes(), "<u2")[512:]
    n = int(pick(rng, [0, 1, 8, 9, 10, 80, 89, 90, 99, 100, 699, 701]))
    count = pick(rng, [n, n, n, n + 1, n - 1, -n])
    path.write_bytes(
        with_header([20240520, 1, count], np.resize(ids, n).tobytes() + pick(rng, [b"", b"", b"\0"]))
    )


def _ids(path: Path, rng: Rng) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        place = 1024 + 2 * int(rng.integers(max(1, (len(raw) - 1024) // 2)))
        raw[place : place + 2] = np.array(pick(rng, [0, VOCAB - 1, VOCAB, VOCAB + 1, 65535]), "<u2").tobytes()
    path.write_bytes(raw)


def _letters(path: Path, rng: Rng) -> None:
    """Bytes that are UTF-8, and bytes that are not: cut off, overlong, surrogates, beyond the last letter."""
    raw = path.read_bytes()
    place = int(rng.integers(len(raw)))
    bad = [
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe4\xb8",
        b"\0",
        "é".encode(),
        b"\r\n",
        b"\x80",
    ]
    path.write_bytes(
        pick(rng, [raw[:place] + pick(rng, bad) + raw[place:], raw[:place], raw + pick(rng, bad)])
    )


def _shorten(path: Path, rng: Rng) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(200))])


def _entry(path: Path, rng: Rng) -> None:
    disarranged(path.parent, path.parent.parent / "elsewhere", rng)
    if path.suffix == ".txt" and path.is_file() and path.stat().st_size == SPARSE:
        os.truncate(path, 5000)  # a long text of zeros is one, and is read to its end


BOTH: list[Callable[[Path, Rng], None]] = [_bytes, _bytes, _shorten, _entry]
OF_TEXT: list[Callable[[Path, Rng], None]] = [*BOTH, _letters, _letters]
OF_TOKENS: list[Callable[[Path, Rng], None]] = [*BOTH, _number_of_header, _number_of_tokens, _ids]


def read(path: Path) -> Data:
    """As a run does before its first step, and then its first batch and all that is held out."""
    tokens = open_tokens(DataConfig(path=str(path)))
    check_all_ids(tokens, VOCAB)
    train, held_out = split(tokens, HOLDOUT, SEQ_LEN)
    for ids, targets in HeldOut(held_out, SEQ_LEN, 4, 0, 1, 0, VOCAB):
        assert 0 <= ids.min() and ids.max() < VOCAB and -1 <= targets.min() and targets.max() < VOCAB
    loader = Loader(train, SEQ_LEN, 4, seed=0, shuffle=False, vocab=VOCAB)
    return Data(tokens.tokens.copy(), train, loader.batch(1, 0, 1))


def one_case(number: int, bases: list[Path], sandbox: Sandbox) -> bool:
    rng = np.random.default_rng([4, number])
    base = pick(rng, bases)
    sandbox.renew(base)
    path = sandbox.case / next(base.iterdir()).name
    pick(rng, OF_TEXT if path.suffix == ".txt" else OF_TOKENS)(path, rng)
    linked = sandbox.elsewhere if path.is_symlink() else path
    found = sandbox.read(lambda: read(path), {DataError.exit_code}, linked)
    if found is None:
        return False
    if path.suffix == ".bin":
        header, ids = np.fromfile(path, "<i4", 256), np.fromfile(path, "<u2", offset=1024)
        assert header[:3].tolist() == [20240520, 1, ids.size] and path.stat().st_size == 1024 + 2 * ids.size
        assert ids.max() < VOCAB
    else:
        ids = np.fromfile(path, "u1")
        assert path.read_bytes().decode("utf-8") is not None
    assert np.array_equal(found.ids, ids)
    n_train = ids.size - int(ids.size * HOLDOUT)
    assert len(found.train.tokens) == n_train
    n_sequences = (n_train - 1) // SEQ_LEN
    starts = np.arange(4) % n_sequences * SEQ_LEN
    windows = np.stack([ids[start : start + SEQ_LEN + 1] for start in starts]).astype(np.int64)
    assert np.array_equal(found.batch[0], windows[:, :-1]) and np.array_equal(found.batch[1], windows[:, 1:])
    return True


@campaign(in_suite=70, in_all=800)
def test_data(numbers: range, bases: list[Path], sandbox: Sandbox) -> None:
    for base in bases:
        sandbox.renew(base)
        assert sandbox.read(lambda: read(next(sandbox.case.iterdir())), ())
    run_cases(numbers, lambda number: one_case(number, bases, sandbox))
