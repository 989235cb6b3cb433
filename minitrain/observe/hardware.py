"""What a run computes on, as far as its record tells of it."""

from typing import NamedTuple


class Hardware(NamedTuple):
    """`text` and `notes` are for the banner: of a run on CPUs there is nothing to say. `peak`: FLOP/s of all
    its GPUs, if known.
    """

    text: str = ""
    peak: float | None = None
    notes: tuple[str, ...] = ()


UNKNOWN = Hardware()
