"""The sample covers all pairs, and is a sample."""

import itertools

from pairwise import pairwise

CASES = [
    dict(zip("abcd", values, strict=True))
    for values in itertools.product(range(3), range(4), (False, True), ("x", "y", "z"))
    if values[0] + values[1] != 4  # illegal together
]


def pairs(cases):
    return {pair for case in cases for pair in itertools.combinations(case.items(), 2)}


def test_every_pair_that_is_legal_is_in_the_sample():
    assert pairs(pairwise(CASES)) == pairs(CASES)


def test_the_sample_is_small_and_legal():
    sample = pairwise(CASES)
    assert all(case in CASES for case in sample)
    assert (
        12 <= len(sample) <= 16
    )  # 3 x 4 - 2 pairs of the two largest fields; some more where the legal ones do not fit


def test_every_case_of_the_sample_adds_a_pair_and_the_sample_is_always_the_same():
    sample = pairwise(CASES)
    assert sample == pairwise(iter(CASES))
    for n, case in enumerate(sample):
        assert pairs([case]) - pairs(sample[:n])


def test_of_one_field_every_value_is_in_the_sample():
    assert pairwise([{"a": 1}, {"a": 2}, {"a": 1}]) == [{"a": 1}, {"a": 2}]
