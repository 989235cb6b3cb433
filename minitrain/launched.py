"""How this process was started, as far as its environment tells.

It imports next to nothing: `__main__` asks it before anything else is imported.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """What the launcher says: how many processes, and which one this is."""

    size: int = 1
    rank: int = 0
    variable: str = ""  # where the size was read


# A job script's own process has SLURM_NTASKS too: only in a step (srun) is it one of so many.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", None),  # Open MPI
    ("PMI_SIZE", "PMI_RANK", None),  # MPICH, Intel MPI
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"),  # srun
)


def launched(environ: Mapping[str, str]) -> Launch:
    """How this process was started, from the environment alone."""
    for size, rank, needed in LAUNCHERS:
        if (
            environ.get(size, "").isdigit()
            and environ.get(rank, "").isdigit()
            and (not needed or needed in environ)
        ):
            return Launch(int(environ[size]), int(environ[rank]), size)
    return Launch()
