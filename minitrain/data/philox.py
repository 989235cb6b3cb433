"""Random numbers that are a function of (seed, name, index): weights and samples, the same in every layout.

Philox (Salmon et al. 2011) turns a key and a counter into random words without any sequence in between, so
element i of a tensor can be had on any rank without the elements before it. The key is a digest of seed and
name; word i of the stream belongs to element i alone.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from minitrain.arrays.types import Array

CHUNK = 1 << 20  # elements made at a time: bounds the memory beside the result
WORDS_PER_COUNT = 4  # one Philox counter value gives four 64-bit words


def normal(
    seed: int, name: str, shape: tuple[int, ...], box: tuple[slice, ...], std: float, dtype: npt.DTypeLike
) -> Array:
    """The part `box` of the tensor `name` of `shape`, drawn from N(0, std^2); contiguous, of type `dtype`.

    Computed in fp64, in blocks of rows that are the same for every box, so that boxes agree bit for bit.
    """
    assert len(shape) == len(box) >= 1
    row_size = int(np.prod(shape[1:]))
    start, stop, stride = box[0].indices(shape[0])
    assert stride == 1
    out = np.empty([len(range(*cut.indices(n))) for cut, n in zip(box, shape, strict=True)], dtype)
    rows = max(1, CHUNK // max(1, row_size))
    for first in range(start - start % rows, stop, rows):
        last = min(first + rows, shape[0])
        block = _standard_normal(seed, name, first * row_size, (last - first) * row_size)
        low, high = max(first, start), min(last, stop)
        part = block.reshape(last - first, *shape[1:])[low - first : high - first, *box[1:]]
        np.multiply(part, std, out=out[low - start : high - start], casting="same_kind")
    return out


def uniform(seed: int, name: str, start: int, count: int) -> Array:
    """Elements start .. start + count of the stream `name`, uniform in the open interval (0, 1), fp64."""
    words = _words(seed, name, start, count)
    return (words >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53  # 53 bits would round up to 1


def _standard_normal(seed: int, name: str, start: int, count: int) -> Array:
    """Elements start .. start + count of N(0, 1): r cos(2 pi v) with r^2 = -2 ln u (Box and Muller 1958).

    u and v are the two halves of one word, so an element needs no partner. |x| stays below 6.8.
    """
    words = _words(seed, name, start, count)
    u = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    v = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u))
    radius *= np.cos(2.0 * np.pi * v)
    return radius


def _words(seed: int, name: str, start: int, count: int) -> Array:
    """Words start .. start + count of the stream of (seed, name), uint64."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))
    skip = start % WORDS_PER_COUNT
    stream.advance(start // WORDS_PER_COUNT)
    words: Array = stream.random_raw(skip + count)
    return words[skip:]
