"""How a process knows that it is one of several."""

import pytest

from minitrain.comm.single import SingleComm
from minitrain.launch import join
from minitrain.launched import Launch, launched

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.mark.parametrize("environ, expected", [
    ({}, Launch(1, 0)),
    ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3"}, Launch(8, 3, "OMPI_COMM_WORLD_SIZE")),
    ({"PMI_SIZE": "4", "PMI_RANK": "1"}, Launch(4, 1, "PMI_SIZE")),
    (SLURM, Launch(1, 0)),  # the job script itself
    (SLURM | {"SLURM_STEP_ID": "0"}, Launch(4, 2, "SLURM_NTASKS")),
    (SLURM | {"SLURM_STEP_ID": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
     Launch(2, 1, "OMPI_COMM_WORLD_SIZE")),  # mpirun inside a job
    ({"PMI_SIZE": "many", "PMI_RANK": "1"}, Launch(1, 0)),
    ({"PMI_SIZE": "4"}, Launch(1, 0)),
])  # fmt: skip
def test_launched(environ: dict[str, str], expected: Launch) -> None:
    assert launched(environ) == expected


def test_one_process_needs_no_mpi() -> None:
    assert isinstance(join(Launch()), SingleComm)
    assert isinstance(join(Launch(1, 0, "OMPI_COMM_WORLD_SIZE")), SingleComm)
