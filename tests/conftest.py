"""How the suite runs: every test that needs ranks gets them, whichever way pytest is started.

`pytest`
    Tests run in this one process, except those marked `@pytest.mark.mpi(min_size=N)`: these run under
    mpirun, once for each size in MPI_SIZES (default 2,4,8) that is not below N, and are listed as
    `test_name (4 ranks)`. See mpi_subrun.py.
`mpirun -n 4 python -m pytest --with-mpi`
    Only the tests marked `mpi` run, on all ranks together. See mpi_ranks.py.
`pytest -n 2`
    As `pytest`, on two processes, or as many as given. See together.py.

`--long` brings in the tests marked `long`. `--gpu` runs those of tests/cuda on a GPU (cuda/devices.py).

This folder is on the import path and no package: a test file writes `from launch import run_minitrain`. Its
subfolders are no packages either, and test files in different ones may share a name (import mode
`importlib`).
"""

import os

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # before the first import of NumPy: ranks on threads share the cores already

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")
    parser.addoption("--gpu", action="store_true", help="tests/cuda: run kernels on the first GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--with-mpi") or config.getoption("--only-mpi"):
        from mpi_ranks import Ranks

        config.pluginmanager.register(Ranks(config))
    else:
        if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
            raise pytest.UsageError(
                "under mpirun, give --with-mpi; or run plain pytest, which starts mpirun itself"
            )
        from mpi_subrun import SubRuns
        from together import Together

        config.pluginmanager.register(SubRuns())
        config.pluginmanager.register(Together())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("long", "gpu"):
        if not config.getoption(f"--{marker}"):
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
