"""Flat vectors: places, views, runs."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.arrays.flat import Layout, merge, overlap, padded


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


@settings(deadline=None)
@given(RUNS)
def test_merge_keeps_the_elements_in_as_few_runs_as_possible(pieces: list[tuple[int, int]]) -> None:
    runs = ordered(pieces)
    merged = merge(runs)
    assert elements(merged) == elements(runs)
    assert all(run.stop > run.start for run in merged)
    assert all(a.stop < b.start for a, b in itertools.pairwise(merged))


@settings(deadline=None)
@given(*(st.integers(0, 30) for _ in range(4)))
def test_overlap_is_the_intersection_counted_from_both_starts(
    start: int, length: int, window_start: int, window_length: int
) -> None:
    piece, window = slice(start, start + length), slice(window_start, window_start + window_length)
    common = [i for i in range(piece.start, piece.stop) if window.start <= i < window.stop]
    in_piece, in_window = overlap(piece, window)
    assert elements([in_piece]) == [i - start for i in common]
    assert elements([in_window]) == [i - window_start for i in common]


def test_tensors_begin_at_multiples_of_the_alignment() -> None:
    layout = Layout([("a", (2, 3)), ("b", (5,)), ("c", (4,))], align=4)
    assert layout.slices == {"a": slice(0, 6), "b": slice(8, 13), "c": slice(16, 20)} and layout.size == 20
