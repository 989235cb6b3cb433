"""A stream of token ids: the built-in text, a UTF-8 file, or an llm.c token file. Files are memory-mapped.

Everything that can be wrong with a file is found here, with its place in it.
"""

import codecs
import math
import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.config import DataConfig
from minitrain.data.corpus import load_text
from minitrain.data.tokenizer import ByteTokenizer
from minitrain.errors import DataError

CHUNK = 1 << 20  # bytes looked at together when a text is checked
BIN_MAGIC, BIN_VERSION = 20240520, 1
BIN_HEADER = 256 * 4  # bytes: 256 int32, of which the first three are magic, version and number of tokens
BIN_REMEDY = "write it again in llm.c's format: 256 int32 (magic 20240520, version 1, count), then uint16 ids"


class TokenFile(NamedTuple):
    """Ids of a text, or of a part of it.

    tokens     uint8 or uint16 [n]
    tokenizer  None where the ids came without one: samples are then ids
    name       the file or corpus, for messages
    start      place of tokens[0] in the whole, for messages
    mapped     what `tokens` is a view of; None where they are in memory
    """

    tokens: Array
    tokenizer: ByteTokenizer | None
    name: str
    start: int = 0
    mapped: mmap.mmap | None = None

    @property
    def kind(self) -> str:
        """Of the tokenizer: `bytes` or, without one, `ids`."""
        return "bytes" if self.tokenizer else "ids"


def open_tokens(data: DataConfig) -> TokenFile:
    """The tokens that `data` asks for. Raises DataError for an absent, unreadable, empty or damaged file."""
    if data.path is None:
        tokens = ByteTokenizer().encode(load_text(data.corpus))
        file = TokenFile(tokens, ByteTokenizer(), data.corpus)
    elif Path(data.path).suffix == ".bin":
        return _open_bin(data.path)
    else:
        mapped = _map(data.path)
        file = TokenFile(np.frombuffer(mapped, np.uint8), ByteTokenizer(), data.path, mapped=mapped)
        _check_utf8(file)
    return file


def split(file: TokenFile, holdout: float, seq_len: int) -> tuple[TokenFile, TokenFile]:
    """(train, held out): the held-out part is the last floor(n * holdout) tokens, empty if holdout is 0.

    Raises DataError for a part that is too short for one sequence.
    """
    total = len(file.tokens)
    n_heldout = int(total * holdout)
    n_train = total - n_heldout
    need = seq_len + 1  # inputs and targets are one apart
    if n_train < need:
        raise DataError(
            f"the text has {n_train} tokens for training, but a sequence needs model.seq_len + 1 = {need}",
            file.name,
            "give a longer text" + (f" or set model.seq_len to {n_train - 1} or less" if n_train > 1 else ""),
        )
    if holdout > 0 and n_heldout < need:
        least = math.ceil(1000 * need / total) / 1000
        raise DataError(
            f"the held-out part has {n_heldout} tokens, a sequence needs model.seq_len + 1 = {need}",
            f"{file.name}, data.holdout {holdout:g}",
            "set data.holdout to 0 (no validation) or "
            + (f"to {least:.3f} or more" if least * total + need < total else "give a longer text"),
        )
    train = file._replace(tokens=file.tokens[:n_train])
    return train, file._replace(tokens=file.tokens[n_train:], start=file.start + n_train)


def check_all_ids(file: TokenFile, vocab: int, part: int = 0, parts: int = 1) -> None:
    """Raise DataError for an id that is not below `vocab` in the part `part` of `parts` of the file.

    Every rank looks at its part before the first step, so that none is met after hours.
    """
    if np.iinfo(file.tokens.dtype).max < vocab:
        return
    n = len(file.tokens)
    stop = n * (part + 1) // parts
    for start in range(n * part // parts, stop, CHUNK):
        check_ids(file, file.tokens[start : min(start + CHUNK, stop)], start, vocab)


def check_length(file: TokenFile) -> None:
    """Raise DataError if the file has become shorter since it was opened.

    To read what is gone from a mapping is not an error but a signal, SIGBUS. Asked before every read, which
    costs a microsecond, only a file that is cut off within that moment is not noticed.
    """
    if file.mapped is not None and file.mapped.size() < len(file.mapped):
        what = f"the file has {file.mapped.size()} bytes, but had {len(file.mapped)} when the run began"
        remedy = "put back what was there, and go on with --run.resume auto"
        raise DataError(what, file.name, remedy)


def check_ids(file: TokenFile, ids: Array, start: int | Array, vocab: int) -> None:
    """Raise DataError for an id not below `vocab`. `ids` [..., m] start at token `start` [..., 1]."""
    if ids.size == 0 or ids.max() < vocab:
        return
    places = start + np.arange(ids.shape[-1])
    wrong = ids >= vocab
    where = file.start + int(np.broadcast_to(places, ids.shape)[wrong][0])
    raise DataError(
        f"id {int(ids[wrong][0])} is not below model.vocab {vocab}",
        f"{file.name}, token {where}",
        f"set model.vocab to at least {int(ids.max()) + 1}, or give another data.path",
    )


def _check_utf8(file: TokenFile) -> None:
    """Raise DataError at the first byte that is not UTF-8. Reads the file once, a chunk at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    total = len(file.tokens)
    for start in range(0, total, CHUNK):
        pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
        stop = min(start + CHUNK, total)
        try:
            decoder.decode(file.tokens[start:stop].tobytes(), final=stop == total)
        except UnicodeDecodeError as problem:
            where = start - pending + problem.start
            raise DataError(
                f"the text is not UTF-8: byte 0x{file.tokens[where]:02x} ({problem.reason})",
                f"{file.name}, byte {where} of {total}",
                "convert it to UTF-8 (iconv -t UTF-8), or name it .bin if it holds tokens",
            ) from None


def _open_bin(path: str) -> TokenFile:
    """An llm.c token file: uint16 ids, little-endian, behind a header that says how many there are."""
    mapped = _map(path)
    raw = np.frombuffer(mapped, np.uint8)
    if len(raw) < BIN_HEADER:
        raise DataError(
            f"the file has {len(raw)} bytes, but its header alone needs {BIN_HEADER}", path, BIN_REMEDY
        )
    magic, version, count = (int(i) for i in raw[:12].view("<i4"))
    if magic != BIN_MAGIC:
        raise DataError(f"magic number {magic} is not {BIN_MAGIC}", f"{path}, byte 0", BIN_REMEDY)
    if version != BIN_VERSION:
        raise DataError(f"version {version} is not {BIN_VERSION}", f"{path}, byte 4", BIN_REMEDY)
    need = BIN_HEADER + 2 * count
    if count <= 0 or len(raw) != need:
        what = f"the header promises {count} tokens, so {need} bytes, but the file has {len(raw)}"
        raise DataError(
            what if count > 0 else f"the header promises {count} tokens", f"{path}, byte 8", BIN_REMEDY
        )
    return TokenFile(raw[BIN_HEADER:].view("<u2"), None, path, mapped=mapped)


def _map(path: str) -> mmap.mmap:
    """The bytes of the file, which stay on disk. Read-only."""
    remedy = "give a UTF-8 text file or an llm.c .bin file in data.path"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise DataError(f"data.path is {kind}", path, remedy)
        if status.st_size == 0:
            raise DataError("the file is empty", path, remedy)
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError("data.path is not there", path, remedy) from None
    except (OSError, ValueError) as problem:  # ValueError: a name with a NUL character
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        remedy = "check its permissions and the disk"
        raise DataError(f"data.path cannot be read ({reason})", path, remedy) from None
