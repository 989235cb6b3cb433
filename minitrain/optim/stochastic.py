"""Stochastic rounding to bf16: up or down by chance, in proportion to the distance, so that it is right on
average and an update far below half an ulp counts now and then (Gupta et al. 2015, section 3).

The chance is a function of (seed, update, tensor, place in the whole tensor) alone: every layout, and every
copy of a parameter, rounds alike.
"""

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from minitrain.arrays.hashing import splitmix64
from minitrain.arrays.types import Array
from minitrain.optim.apply import Rounding

CUT = 16  # bits that fp32 has and bf16 has not

Places: TypeAlias = Callable[[slice, Array], Array]
"""Of some elements at hand the places in the whole tensor (uint64), in the memory that the array is in."""


def stochastic_rounding(seed: int, count: int, name: str, places: Places) -> Rounding:
    """The rounding of update `count` of tensor `name`. Each of up to four vectors takes 16 bits of an
    element's 64.
    """
    key = np.uint64(rounding_key(seed, count, name))

    def rounding(values: dict[str, Array], elements: slice, targets: dict[str, Array]) -> None:
        like = next(iter(values.values()))
        bits = splitmix64(splitmix64(places(elements, like)) ^ key)
        for slot, target in enumerate(targets):
            chance = (bits >> np.uint64(CUT * slot)).astype(np.uint16)
            targets[target][...] = round_up_or_down(values[target], chance)

    return rounding


def rounding_key(seed: int, count: int, name: str) -> int:
    """Of update `count` of tensor `name`, below 2^64."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{count}:{name}".encode()).digest()[:8], "little")


def round_up_or_down(x: Array, chance: Array) -> Array:
    """x (fp32) with its last 16 bits gone: rounded away from zero where they and `chance` (uint16, uniform)
    add up to 2^16 or more, else towards zero. What is not finite stays. A value of bf16, in fp32.
    """
    bits = x.astype(x.dtype, order="C", copy=False).view(np.uint32)
    rounded = (bits + chance) & np.uint32(0xFFFFFFFF << CUT & 0xFFFFFFFF)
    result: Array = np.where(np.isfinite(x), rounded.view(np.float32), x)
    return result
