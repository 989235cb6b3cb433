"""A table with its title, and the formula of each of its numbers; and numbers as text."""

from typing import NamedTuple

from minitrain.tables import table

Rows = list[tuple[str, ...]]
Formulas = dict[str, str]


class Section(NamedTuple):
    """`rows` begins with the titles of the columns. `formulas` says how each number is made: by the title of
    its column, or of its row where a row is one number.
    """

    title: str
    rows: Rows
    formulas: Formulas
    notes: tuple[str, ...] = ()
    left: int = 1  # columns of text

    def text(self, explain: bool) -> str:
        lines = [self.title, *("  " + line for line in table(self.rows, self.left).splitlines())]
        lines += [f"  {note}" for note in self.notes]
        if explain:
            lines += [f"    {name}: {formula}" for name, formula in self.formulas.items()]
        return "\n".join(lines)


def size(n: float) -> str:
    """Bytes, in steps of 1000."""
    if n == 0:
        return "0"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}" if n < 100 * scale else f"{n / scale:.0f} {unit}"
    return f"{n:.0f} B"


def gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB"


def seconds(t: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if t >= scale:
            return f"{t / scale:.3g} {unit}"
    return f"{t / 1e-6:.3g} us"
