"""Text to ids and back."""

from typing import Protocol

import numpy as np

from minitrain.arrays.types import Array


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> Array: ...

    def decode(self, ids: Array) -> str: ...


class IdTokenizer:
    """For ids of which nobody knows what they stand for: their numbers, with spaces between."""

    def encode(self, text: str) -> Array:
        """Raises ValueError if `text` is anything but whole numbers."""
        return np.array([int(word) for word in text.split()], np.int64)

    def decode(self, ids: Array) -> str:
        return " ".join(map(str, ids.tolist()))


class ByteTokenizer:
    """Ids are the bytes of the text in UTF-8: 256 of them cover every language, without any training."""

    vocab_size = 256

    def encode(self, text: str) -> Array:
        """The bytes of `text`, uint8 [n]."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Array) -> str:
        """The text of `ids` (any integers of 0 .. 255); bytes that are no UTF-8 become U+FFFD."""
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
