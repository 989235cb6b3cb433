"""Thousands of cases by number: a few in the suite, all by `--long`, any one alone by FUZZ_CASE=NUMBER.

@campaign(in_suite=250, in_all=8_000)
def test_damage(numbers: range, …) -> None:
    run_cases(numbers, lambda number: …)
"""

import os
import traceback
from collections.abc import Callable, Iterator

import pytest

BLOCK = 100  # cases of one test
MANY = 60  # cases of which some are accepted and some are not
SHOWN = 5  # failures of a test that are printed


def campaign(in_suite: int, in_all: int) -> pytest.MarkDecorator:
    """Parametrizes a test with `numbers`, the cases to try: those of the suite are the first of all."""
    if one := os.environ.get("FUZZ_CASE"):
        return pytest.mark.parametrize("numbers", [range(int(one), int(one) + 1)], ids=[one])
    blocks = [*_blocks(0, in_suite), *_blocks(in_suite, in_all)]
    marks = [() if block.stop <= in_suite else (pytest.mark.long,) for block in blocks]
    params = [
        pytest.param(block, marks=mark, id=f"{block.start}-{block.stop - 1}")
        for block, mark in zip(blocks, marks, strict=True)
    ]
    return pytest.mark.parametrize("numbers", params)


def _blocks(start: int, stop: int) -> Iterator[range]:
    for first in range(start, stop, BLOCK):
        yield range(first, min(first + BLOCK, stop))


def run_cases(numbers: range, case: Callable[[int], bool]) -> None:
    """All of them, whether or not one fails. A case returns whether what it read was accepted: if all are, or
    none of many, damage does no damage, or hits nothing but the first thing that is checked.
    """
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0]
    failures, accepted = [], 0
    for number in numbers:
        try:
            accepted += case(number)
        except KeyboardInterrupt:
            raise
        except BaseException:  # also what no Exception is: a time limit, a panic of a library
            again = f"FUZZ_CASE={number} python -m pytest -q {test}"
            failures.append(f"{again}\n{traceback.format_exc()}")
    assert not failures, f"{len(failures)} of {len(numbers)} cases\n\n" + "\n".join(failures[:SHOWN])
    assert 0 < accepted < len(numbers) or len(numbers) < MANY, f"{accepted} of {len(numbers)} were accepted"
