"""A sample of cases in which every pair of values of any two parameters occurs, if it occurs at all."""

import heapq
import itertools
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Case = TypeVar("Case", bound=Mapping[str, Hashable])


def pairwise(cases: Iterable[Case]) -> list[Case]:
    """Of the (legal) `cases`, dictionaries with the same keys, a few that cover all pairs; always the same.

    Greedy: in every round the case that adds most new pairs, the first of equals. What a case adds only
    shrinks as others are taken, so it is counted again only when its last count is the best (Minoux 1978).
    """
    cases = list(cases)
    pairs = [set(itertools.combinations_with_replacement(sorted(case.items()), 2)) for case in cases]
    covered: set[tuple[tuple[str, Hashable], ...]] = set()
    best = [(-len(added), index) for index, added in enumerate(pairs)]
    heapq.heapify(best)
    sample = []
    while best:
        _, index = best[0]
        pairs[index] -= covered
        count = (-len(pairs[index]), index)
        if not pairs[index]:
            heapq.heappop(best)
        elif count > best[0]:
            heapq.heapreplace(best, count)
        else:
            heapq.heappop(best)
            covered |= pairs[index]
            sample.append(cases[index])
    return sample
