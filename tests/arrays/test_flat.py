"""Flat vectors: places, views, runs."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minitrain.arrays.flat import Layout, merge, padded, within


def test_views_share_the_vector_and_leave_the_padding() -> None:
    layout = Layout([("a", (2, 3)), ("empty", (0, 4)), ("b", (5,))])
    flat = np.zeros(12)
    for number, view in enumerate(layout.views(flat).values(), 1):
        view += number
    assert layout.size == 11
    assert flat.tolist() == [1] * 6 + [3] * 5 + [0]


def test_padded() -> None:
    assert [padded(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]


RUNS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)  # (gap before, length)


def elements(runs: list[slice]) -> list[int]:
    return [i for run in runs for i in range(run.start, run.stop)]


def ordered(pieces: list[tuple[int, int]]) -> list[slice]:
    runs, place = [], 0
    for gap, length in pieces:
        runs.append(slice(place + gap, place + gap + length))
        place += gap + length
    return runs


@given(RUNS)
def test_merge_keeps_the_elements_in_as_few_runs_as_possible(pieces: list[tuple[int, int]]) -> None:
    runs = ordered(pieces)
    merged = merge(runs)
    assert elements(merged) == elements(runs)
    assert all(run.stop > run.start for run in merged)
    assert all(a.stop < b.start for a, b in itertools.pairwise(merged))


@given(RUNS, st.integers(0, 30), st.integers(0, 30))
def test_within_is_the_intersection_counted_from_the_window(
    pieces: list[tuple[int, int]], start: int, length: int
) -> None:
    runs = ordered(pieces)
    found = elements(within(runs, slice(start, start + length)))
    assert found == [i - start for i in elements(runs) if start <= i < start + length]
