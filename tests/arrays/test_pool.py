"""Borrowed buffers come back."""

import numpy as np
import pytest

from minitrain.arrays.pool import Pool

FP32, FP64 = np.dtype(np.float32), np.dtype(np.float64)


def test_what_was_given_back_is_lent_again() -> None:
    pool = Pool()
    with pool.borrow(10, FP64) as a, pool.borrow(10, FP64) as b:
        assert a is not b and not np.shares_memory(a, b)
    with pool.borrow(10, FP64) as c, pool.borrow(10, FP64) as d:
        assert {id(c), id(d)} == {id(a), id(b)}
    assert pool.bytes == 160


def test_size_and_type_must_match() -> None:
    pool = Pool()
    for size, dtype in ((10, FP64), (10, FP32), (9, FP64)):
        with pool.borrow(size, dtype) as buffer:
            assert (buffer.size, buffer.dtype) == (size, dtype)
    assert pool.bytes == 80 + 40 + 72


def test_an_exception_gives_it_back() -> None:
    pool = Pool()
    with pytest.raises(ZeroDivisionError), pool.borrow(10, FP64):
        raise ZeroDivisionError
    with pool.borrow(10, FP64):
        assert pool.bytes == 80
