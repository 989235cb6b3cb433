import numpy as np

from minitrain.data.tokenizer import ByteTokenizer


def test_round_trip_of_any_text() -> None:
    tokenizer = ByteTokenizer()
    for text in ("", "And it came to pass", "naïve Ω 𝄞 中文\n\0"):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint8 and ids.ndim == 1 and len(ids) == len(text.encode())
        assert tokenizer.decode(ids.astype(np.int64)) == text


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert ByteTokenizer().decode(np.array([65, 0xC3, 66, 0xFF])) == "A\ufffdB\ufffd"
