"""The machinery that runs tests on several ranks: it must end, and say what went wrong on which rank."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from launch import REPOSITORY, HangError, living_processes, run, run_minitrain, run_python, under_mpirun

COMM = "from mpi4py import MPI\ncomm = MPI.COMM_WORLD\n"


def test_run_python_on_ranks() -> None:
    job = run_python(COMM + "print(comm.rank, 'of', comm.size)", ranks=3)
    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.splitlines()) == ["0 of 3", "1 of 3", "2 of 3"]


def test_run_python_takes_a_file_and_arguments(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("import os, sys; print(os.getcwd(), sys.argv[1:], os.environ['COLOUR'])")
    job = run_python(file, 1, "b", cwd=tmp_path, env={"COLOUR": "red"})
    assert job.stdout == f"{tmp_path} ['1', 'b'] red\n"


def test_run_minitrain_finds_this_tree_from_anywhere(tmp_path: Path) -> None:
    assert "usage" in run_minitrain("--help", cwd=tmp_path).stdout


def test_the_environment_of_another_launcher_does_not_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "7")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    job = run_python("import os; print([k for k, v in os.environ.items() if v == '7'])")
    assert job.stdout == "[]\n"


def test_a_rank_that_raises_ends_the_others() -> None:
    job = run_python(COMM + "assert comm.rank != 1, 'a message of rank 1'\ncomm.Barrier()", ranks=3)
    assert job.returncode != 0
    assert "a message of rank 1" in job.stderr


def test_a_hang_ends_with_its_output_and_leaves_no_process(tmp_path: Path) -> None:
    hang = """
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(f"rank-{comm.rank}").write_text(str(os.getpid()))
        print("before", flush=True)
        comm.Barrier()
        time.sleep(1000)
    """
    with pytest.raises(HangError, match="before"):
        run_python(COMM + textwrap.dedent(hang), ranks=2, cwd=tmp_path, timeout=10)
    for rank in (0, 1):
        assert int((tmp_path / f"rank-{rank}").read_text()) not in living_processes()


def test_nothing_of_a_session_outlives_its_leader(tmp_path: Path) -> None:
    start_orphan = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"
    orphan = int(run_python(start_orphan).stdout)
    assert orphan not in living_processes()


QUICK = {"MPI_GRACE": "2"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own, with the settings and the machinery of this one."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    for file in ("conftest.py", "launch.py", "mpi_ranks.py", "mpi_subrun.py", "together.py"):
        shutil.copy(REPOSITORY / "tests" / file, tmp_path / "tests")
    return tmp_path


def write_tests(project: Path, text: str) -> None:
    header = "import os, pytest, signal\nfrom mpi4py import MPI\n"
    (project / "tests" / "test_it.py").write_text(header + textwrap.dedent(text))


def plain_pytest(project: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run(
        [sys.executable, "-m", "pytest", "-v", *args], cwd=project, env={"MPI_SIZES": "2", **QUICK, **env}
    )


SEVERAL_TESTS = """
    def test_single(): pass

    @pytest.mark.mpi(min_size=2)
    def test_sum(tmp_path):
        (tmp_path / "file").write_text("")
        assert MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.size > 1

    @pytest.mark.mpi(min_size=3)
    @pytest.mark.parametrize("value", [1.5, 2.5])
    def test_three(value): assert MPI.COMM_WORLD.size >= 3

    @pytest.mark.mpi(min_size=9)
    def test_nine(): pass

    @pytest.mark.mpi(min_size=2)
    def test_skipped(): pytest.skip("not today")

    @pytest.mark.long
    def test_long(): pass
"""


def test_plain_pytest_runs_each_test_on_every_size_it_can(project: Path) -> None:
    write_tests(project, SEVERAL_TESTS)
    job = plain_pytest(project, MPI_SIZES="2,3")
    assert job.returncode == 0, job.stdout
    for line in (
        "test_single PASSED",
        "test_sum (2 ranks) PASSED",
        "test_sum (3 ranks) PASSED",
        "test_three[1.5] (3 ranks) PASSED",
        "test_three[2.5] (3 ranks) PASSED",
        "needs 9 ranks, and MPI_SIZES ends at 3",
        "test_skipped (3 ranks): not today",
        "5 passed, 3 skipped, 1 deselected",
    ):
        assert line in job.stdout, job.stdout


@pytest.mark.parametrize(
    ("selection", "outcome"),
    [
        (["-k", "single"], "1 passed, 6 deselected"),
        (["--long", "-k", "long"], "1 passed, 6 deselected"),
        (["tests/test_it.py::test_three[2.5]", "tests/test_it.py::test_single"], "2 passed"),
        (["-m", "not mpi"], "1 passed, 6 deselected"),
    ],
)
def test_selection_reaches_the_ranks(project: Path, selection: list[str], outcome: str) -> None:
    write_tests(project, SEVERAL_TESTS)
    job = plain_pytest(project, *selection, MPI_SIZES="3")
    assert outcome in job.stdout, job.stdout


def test_what_is_not_selected_does_not_run(project: Path) -> None:
    write_tests(
        project,
        """
        @pytest.mark.mpi(min_size=2)
        def test_chosen(): open("chosen", "w")

        @pytest.mark.mpi(min_size=2)
        def test_other(): open("other", "w")
        """,
    )
    plain_pytest(project, "-k", "chosen")
    assert (project / "chosen").exists() and not (project / "other").exists()


def test_no_selected_test_needs_ranks_so_none_are_started(project: Path) -> None:
    write_tests(project, SEVERAL_TESTS)
    (project / "tests" / "mpi_ranks.py").write_text("raise SystemExit('ranks were started')")
    assert plain_pytest(project, "-k", "single").returncode == 0
    assert plain_pytest(project, "-k", "sum").returncode != 0  # as it must, if this test can see anything


def test_a_failing_rank_is_named_while_the_others_wait_for_it(project: Path) -> None:
    write_tests(
        project,
        """
        @pytest.mark.mpi(min_size=2)
        def test_parting():
            print("seen before")
            assert MPI.COMM_WORLD.rank != 1, "a message of rank 1"
            MPI.COMM_WORLD.Barrier()

        @pytest.mark.mpi(min_size=2)
        def test_next(): pass
        """,
    )
    job = plain_pytest(project)
    assert job.returncode == 1
    assert "rank 1 of 2: AssertionError: a message of rank 1" in job.stdout
    assert "seen before" in job.stdout
    assert "test_next (2 ranks) - Failed: not run" in job.stdout


def test_a_failure_of_all_ranks_is_shown_once_and_the_next_test_runs(project: Path) -> None:
    write_tests(
        project,
        """
        @pytest.mark.mpi(min_size=2)
        def test_wrong(): assert 1 == 2

        @pytest.mark.mpi(min_size=2)
        def test_next(): MPI.COMM_WORLD.Barrier()
        """,
    )
    job = plain_pytest(project)
    assert job.returncode == 1
    assert job.stdout.count("def test_wrong") == 1
    assert "ranks 0, 1 of 2: assert 1 == 2" in job.stdout
    assert "1 failed, 1 passed" in job.stdout


def test_a_deadlock_ends_by_the_limit_and_shows_the_line(project: Path) -> None:
    write_tests(
        project,
        """
        @pytest.mark.mpi(min_size=2)
        def test_deadlock():
            if MPI.COMM_WORLD.rank == 1:
                MPI.COMM_WORLD.recv(source=0)
        """,
    )
    job = plain_pytest(project, MPI_TEST_LIMIT="5")
    assert job.returncode == 1
    assert "rank 1 of 2 did not come out of it" in job.stdout
    assert "line 7 in test_deadlock" in job.stdout


def test_a_killed_rank_is_a_failure(project: Path) -> None:
    write_tests(
        project,
        """
        @pytest.mark.mpi(min_size=2)
        def test_killed():
            if MPI.COMM_WORLD.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            MPI.COMM_WORLD.Barrier()
        """,
    )
    job = plain_pytest(project)
    assert job.returncode == 1
    assert "did not come out of it" in job.stdout
    assert "rank 1" in job.stdout


def test_ranks_that_fail_after_the_last_test_are_a_failure(project: Path) -> None:
    write_tests(
        project,
        """
        import atexit

        @pytest.mark.mpi(min_size=2)
        def test_fine(): atexit.register(os._exit, 3)
        """,
    )
    job = plain_pytest(project)
    assert job.returncode == 1
    assert "no test failed, yet mpirun ended with code 3" in job.stdout


def test_by_hand_under_mpirun(project: Path) -> None:
    write_tests(project, SEVERAL_TESTS)
    by_hand = [sys.executable, "-m", "pytest", "--with-mpi"]
    job = run(under_mpirun([*by_hand, "--color=no"], 3), cwd=project)
    assert job.returncode == 0, job.stdout
    assert job.stdout.count("3 passed, 2 skipped, 2 deselected") == 3
    write_tests(
        project, "@pytest.mark.mpi\ndef test_parting(): assert MPI.COMM_WORLD.rank; MPI.COMM_WORLD.Barrier()"
    )
    job = run(under_mpirun(by_hand, 2), cwd=project, env=QUICK)
    assert job.returncode != 0
    assert "rank 0: tests/test_it.py::test_parting failed, and other ranks wait for it" in job.stderr
