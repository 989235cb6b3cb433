"""Ranks in words: `ranks 0, 2-5`, and which of them say what."""

from collections.abc import Iterable, Mapping


def name_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0, 2-5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"rank{'' if len(shown) == 1 and '-' not in shown[0] else 's'} {', '.join(shown)}"


def grouped(texts: Mapping[int, str]) -> list[tuple[list[int], str]]:
    """(ranks, text) for every different text, that of most ranks first."""
    groups: dict[str, list[int]] = {}
    for rank, text in sorted(texts.items()):
        groups.setdefault(text, []).append(rank)
    return sorted(
        ((ranks, text) for text, ranks in groups.items()), key=lambda group: (-len(group[0]), group)
    )


def who_says(texts: Mapping[int, str], most: int = 4) -> str:
    """`ranks 0, 2: this, rank 1: that`: one readable line, however many ranks there are."""
    groups = grouped(texts)
    shown = [f"{name_ranks(ranks)}: {text}" for ranks, text in groups[:most]]
    if more := sum(len(ranks) for ranks, _ in groups[most:]):
        shown.append(f"{more} more rank{'s'[: more > 1]}: something else again")
    return ", ".join(shown)
