"""The tokenizer of a Hugging Face directory."""

from pathlib import Path

import numpy as np

from minitrain.arrays.types import Array
from minitrain.checkpoint.hf_config import read_hf_tokenizer
from minitrain.data.tokenizer import ByteTokenizer, IdTokenizer, Tokenizer
from minitrain.errors import CheckpointError

FILE = "tokenizer.json"


class FileTokenizer:
    """tokenizer.json, read by Hugging Face's `tokenizers`."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError:
            remedy = 'pip install "minitrain[tokenizers]"'
            raise CheckpointError(f"{FILE} needs the package tokenizers", str(path), remedy) from None
        try:
            self._tokenizer = Reader.from_file(str(path))
        except Exception as problem:  # the library raises nothing more precise
            raise CheckpointError(
                f"the tokenizer is damaged ({problem})", str(path), "copy the file again"
            ) from None

    def encode(self, text: str) -> Array:
        return np.array(self._tokenizer.encode(text).ids, np.int64)

    def decode(self, ids: Array) -> str:
        text: str = self._tokenizer.decode(ids.tolist())
        return text


def read_tokenizer(directory: str | Path, vocab: int) -> Tokenizer:
    """tokenizer.json where there is one; else what the model says, if it does; else bytes for 256 ids."""
    path = Path(directory) / FILE
    if path.is_file():
        return FileTokenizer(path)
    said = read_hf_tokenizer(directory)
    if said == "bytes" or (said is None and vocab == ByteTokenizer.vocab_size):
        return ByteTokenizer()
    return IdTokenizer()
