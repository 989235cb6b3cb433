import os
from pathlib import Path

import numpy as np
import pytest

from minitrain.config import DataConfig
from minitrain.data import tokens
from minitrain.data.loader import read_sequences
from minitrain.data.tokens import TokenFile, check_all_ids, check_ids, open_tokens, split
from minitrain.errors import DataError


def bin_bytes(ids: list[int], magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + np.array(ids, "<u2").tobytes()


def in_memory(n: int) -> TokenFile:
    return TokenFile(np.arange(n, dtype=np.uint16), None, "memory")


def is_mapped(file: TokenFile) -> bool:
    """Whether the tokens lie in the mapping, at the end of it."""
    assert file.mapped is not None
    whole = np.frombuffer(file.mapped, np.uint8)
    return (
        bool(np.shares_memory(whole, file.tokens))
        and file.tokens.tobytes() == whole[-file.tokens.nbytes :].tobytes()
    )


def test_built_in_corpus() -> None:
    file = open_tokens(DataConfig())
    assert file.name == "kjv" and file.tokenizer is not None and file.tokens.dtype == np.uint8
    assert file.tokenizer.decode(file.tokens[:11]) == "Genesis\n\n1:"


def test_text_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Grüße, 世界\n", encoding="utf-8")
    file = open_tokens(DataConfig(path=str(path)))
    assert file.tokenizer is not None and file.tokenizer.decode(file.tokens) == "Grüße, 世界\n"
    assert is_mapped(file) and not file.tokens.flags.writeable


def test_bin_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    path.write_bytes(bin_bytes([1, 50256, 65535]))
    file = open_tokens(DataConfig(path=str(path)))
    assert (
        file.tokenizer is None
        and file.tokens.tolist() == [1, 50256, 65535]
        and file.tokens.dtype == np.uint16
    )
    assert is_mapped(file)


BAD_FILES = {  # name: (file name, content, what the message says)
    "empty": ("a.txt", b"", "the file is empty"),
    "latin-1": ("a.txt", "caf\xe9 noir".encode("latin-1"), r"byte 0xe9 .*a.txt, byte 3 of 9; convert"),
    "utf-16": ("a.txt", "text".encode("utf-16"), "not UTF-8: byte 0xff .* byte 0 of 10"),
    "cut character": ("a.txt", "abc世".encode()[:-1], "not UTF-8: byte 0xe4 .*unexpected end.* byte 3 of 5"),
    "surrogate": ("a.txt", b"\xed\xa0\x80", "not UTF-8"),
    "empty bin": ("a.bin", b"", "the file is empty"),
    "short header": ("a.bin", b"\0" * 1000, "1000 bytes, but its header alone needs 1024"),
    "no header": ("a.bin", b"\0" * 2000, r"magic number 0 is not 20240520; .*a.bin, byte 0"),
    "llama-3 tokens": ("a.bin", bin_bytes([1], magic=20240801, version=7), "magic number 20240801 is not"),
    "version": ("a.bin", bin_bytes([1], version=2), "version 2 is not 1; .*byte 4"),
    "truncated": ("a.bin", bin_bytes([1, 2, 3])[:-2], "3 tokens, so 1030 bytes, but the file has 1028"),
    "odd": ("a.bin", bin_bytes([1, 2, 3])[:-1], "3 tokens, so 1030 bytes, but the file has 1029"),
    "too long": ("a.bin", bin_bytes([1, 2, 3], count=2), "2 tokens, so 1028 bytes, but the file has 1030"),
    "negative": ("a.bin", bin_bytes([], count=-5), "promises -5 tokens"),
    "none": ("a.bin", bin_bytes([]), "promises 0 tokens"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_tokens(DataConfig(path=str(tmp_path / name)))
    assert error.value.exit_code == 3 and "\n" not in str(error.value) and str(error.value).count("; ") == 2


def test_bad_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {".": "is a directory", "pipe": "no regular file", "no.txt": "not there", "no.bin": "not there"}
    for name, message in (cases | {"a\0b": "null"}).items():
        with pytest.raises(DataError, match=message):
            open_tokens(DataConfig(path=f"{tmp_path}/{name}"))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")

    def refuse(*args: object, **kwargs: object) -> None:  # a superuser, as in containers, is refused nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tokens.mmap, "mmap", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); .*a.txt"):
        open_tokens(DataConfig(path=str(path)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
def test_utf8_across_chunks(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    path = tmp_path / "a.txt"
    good = "aé世𝄞".encode() * 5
    path.write_bytes(good)
    assert open_tokens(DataConfig(path=str(path))).tokens.tobytes() == good
    for wrong in (b"\xff", b"\xe4\xb8z", b"\xf0\x9d\x84"):
        path.write_bytes(good + wrong + b"z" + good)
        with pytest.raises(DataError, match=f"byte {len(good)} of"):
            open_tokens(DataConfig(path=str(path)))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    """Longer or removed is no matter: what is mapped stays."""
    path = tmp_path / "tokens.bin"
    path.write_bytes(bin_bytes(list(range(5000))))
    train, heldout = split(open_tokens(DataConfig(path=str(path))), 0.2, 8)
    index = np.array([0, 3])
    with path.open("ab") as file:
        file.write(b"more")
    before = [part.tolist() for part in read_sequences(train, index, 8, 5000)]
    os.truncate(path, 9000)
    for part in (train, heldout):
        with pytest.raises(
            DataError, match=r"the file has 9000 bytes, but had 11024 when .* began; .*tokens.bin; put"
        ):
            read_sequences(part, index, 8, 5000)
    path.write_bytes(bin_bytes(list(range(5000))))
    path.unlink()
    assert [part.tolist() for part in read_sequences(train, index, 8, 5000)] == before


def test_split_is_the_tail() -> None:
    train, heldout = split(in_memory(1000), 0.0599, 8)
    assert train.tokens.tolist() == list(range(941)) and train.start == 0
    assert heldout.tokens.tolist() == list(range(941, 1000)) and heldout.start == 941
    train, heldout = split(in_memory(1000), 0, 8)
    assert len(train.tokens) == 1000 and len(heldout.tokens) == 0
    split(in_memory(9), 0, 8)
    split(in_memory(18), 0.5, 8)


def test_split_too_short() -> None:
    with pytest.raises(DataError, match=r"8 tokens for training.* \+ 1 = 9; memory; .*seq_len to 7"):
        split(in_memory(8), 0, 8)
    with pytest.raises(DataError, match="8 tokens for training"):
        split(in_memory(17), 0.55, 8)
    with pytest.raises(DataError, match=r"8 tokens, .*seq_len \+ 1 = 9; memory, data.holdout 0.1; .*0.113"):
        split(in_memory(80), 0.1, 8)
    split(in_memory(80), 0.113, 8)
    with pytest.raises(DataError, match="or give a longer text"):
        split(in_memory(17), 0.2, 8)


def test_ids_beyond_the_vocabulary_are_named() -> None:
    file = split(in_memory(100), 0.5, 8)[1]
    check_ids(file, file.tokens, 0, 100)
    with pytest.raises(DataError, match=r"id 98 is not .* 98; memory, token 98; .* at least 100"):
        check_ids(file, file.tokens, 0, 98)
    rows = file.tokens[np.array([[3], [20]]) + np.arange(9)]
    with pytest.raises(DataError, match=r"id 75 is not below model.vocab 75; memory, token 75;"):
        check_ids(file, rows, np.array([[3], [20]]), 75)


def test_small_vocabulary_with_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc\nabz")
    file = open_tokens(DataConfig(path=str(path)))
    check_all_ids(file, ord("z") + 1)
    with pytest.raises(
        DataError, match=r"id 122 is not .* 122; .*a.txt, token 6; set model.vocab to at least 123"
    ):
        check_all_ids(file, ord("z"))


def test_all_ids_are_looked_at_each_by_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong id is found by the rank whose part it is in, wherever the parts and the chunks end."""
    monkeypatch.setattr(tokens, "CHUNK", 7)
    for parts in (1, 2, 3, 5):
        for place in range(50):
            ids = np.zeros(50, np.uint16)
            ids[place] = 300
            file = TokenFile(ids, None, "memory")
            check_all_ids(file, 301)
            found = []
            for part in range(parts):
                try:
                    check_all_ids(file, 300, part, parts)
                except DataError as error:
                    found.append(str(error))
            assert len(found) == 1 and f"memory, token {place};" in found[0]
