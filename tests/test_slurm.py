"""The batch scripts of slurm/, submitted as they are to a real Slurm (scripts/slurm_local)."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from launch import HANG_LIMIT, REPOSITORY, living_processes, run, run_minitrain

CANNOT = 69  # what scripts/slurm_local ends with where there is no Slurm
LAUNCHERS = ("mpirun", "srun")
SMALL = "--model.width 32 --data.holdout 0.001 --run.sample_tokens 0 --run.export_hf false".split()

T = TypeVar("T")
Numbers = list[tuple[int, float, float]]  # of each step: its number, loss, norm
Unbroken = Callable[[int, int], Numbers]


class Cluster:
    """A running Slurm of two nodes, and a user in a folder with the scripts, but for them empty."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "cluster"
        shutil.copytree(REPOSITORY / "slurm", home / "slurm")
        self.variables = {"SLURM_LOCAL": str(self.folder)}
        started = self.local("start", "2", "4")
        if started.returncode == CANNOT:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
        exports = shlex.split(self.local("env").stdout)[1:]
        self.variables |= python | dict(export.split("=", 1) for export in exports)

    def local(self, *args: str) -> subprocess.CompletedProcess[str]:
        return run([str(REPOSITORY / "scripts" / "slurm_local"), *args], env=self.variables)

    def call(self, *command: object, **variables: str) -> str:
        """What a command prints, which must succeed."""
        done = run([str(word) for word in command], cwd=self.home, env=self.variables | variables)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *command: object, **variables: str) -> str:
        """The number of a job: `sbatch COMMAND`."""
        return self.call("sbatch", "--parsable", *command, **variables)

    def job(self, job: str) -> dict[str, str]:
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def output(self, job: str) -> str:
        file = self.home / f"slurm-{job}.out"
        return file.read_text(errors="replace").replace("\0", "") if file.exists() else ""

    def wait(self, job: str, state: str = "COMPLETED") -> str:
        """The job's output, once it has ended, which it must do in this state."""

        def end() -> str | None:
            now = self.job(job)["JobState"]
            return None if now in ("PENDING", "RUNNING", "COMPLETING") else now

        assert self.wait_until(end, job) == state, self.output(job)
        return self.output(job)

    def wait_until(self, look: Callable[[], T | None], job: str) -> T:
        """What `look` finds, once it finds something."""
        deadline = time.monotonic() + HANG_LIMIT
        while (found := look()) is None:
            assert time.monotonic() < deadline, f"{self.job(job)}\n{self.output(job)}"
            time.sleep(0.1)
        return found

    def run_dir(self, job: str) -> Path:
        return self.home / "runs" / job

    def processes(self) -> list[int]:
        """Daemons, jobs, and what jobs have left behind."""
        mark = f"SLURM_CONF={self.folder}/".encode()
        return [pid for pid in living_processes() if mark in environment_of(pid)]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def numbers(run_dir: Path) -> Numbers:
    """Step, loss and norm of each line: JSON has all 17 digits of them."""
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return []
    complete = file.read_text().rpartition("\n")[0]
    lines = [json.loads(line) for line in complete.splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster
    finally:
        cluster.local("stop")
    assert not cluster.processes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The numbers of a run of so many steps on so many ranks, without Slurm."""

    @functools.cache
    def result(ranks: int, steps: int) -> Numbers:
        folder = tmp_path_factory.mktemp("unbroken")
        arguments = (*SMALL, "--train.steps", steps, "--run.dir", folder / "run")
        done = run_minitrain(*arguments, ranks=ranks, env={"OMPI_MCA_mpi_yield_when_idle": "1"})
        assert done.returncode == 0, done.stderr
        return numbers(folder / "run")

    return result


@pytest.mark.parametrize("script, nodes, ranks", [
    ("one_node", 1, 2), ("mpirun", 2, 4), ("srun", 2, 4), ("gpus", 1, 2),
])  # fmt: skip
def test_training(script: str, nodes: int, ranks: int, slurm: Cluster, unbroken: Unbroken) -> None:
    size = (f"--nodes={nodes}", "--ntasks-per-node=2")
    on_cpus = ("--backend", "numpy") if script == "gpus" else ()  # its GPUs are copies of /dev/null
    job = slurm.submit(*size, f"slurm/{script}.sh", *SMALL, "--train.steps", 20, *on_cpus)
    assert f" {ranks} ranks = " in slurm.wait(job)
    assert slurm.job(job)["NodeList"] == ("n1" if nodes == 1 else "n[1-2]")
    assert numbers(slurm.run_dir(job)) == unbroken(ranks, 20)


STEPS = 400  # enough to be interrupted


def start(slurm: Cluster, script: str) -> str:
    """A job of two ranks on two nodes."""
    size = ("--nodes=2", "--ntasks-per-node=1")
    length = ("--train.steps", STEPS, "--run.save_every", 25)
    return slurm.submit(*size, f"slurm/{script}.sh", *SMALL, *length)


def wait_until_it_trains(slurm: Cluster, job: str) -> None:
    slurm.wait_until(lambda: True if len(numbers(slurm.run_dir(job))) > 30 else None, job)


def check_it_went_on(slurm: Cluster, job: str, unbroken: Unbroken, ended_with: str = r"\d+") -> None:
    """The job was started twice, the second time from a checkpoint, and nothing shows it in the numbers."""
    output = slurm.wait(job)
    goes_on = f"ended with {ended_with} and goes on later.*start 2.*goes on from step"
    assert re.search(goes_on, output, re.DOTALL), output
    assert slurm.job(job)["Restarts"] == "1"
    assert numbers(slurm.run_dir(job)) == unbroken(2, STEPS)


def preempt(slurm: Cluster, _: str = "") -> None:
    """Another job wants all nodes, and comes first."""
    slurm.wait(slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap", "true"))


def test_a_job_whose_time_is_nearly_up(slurm: Cluster, unbroken: Unbroken) -> None:
    """Slurm tells the batch shell alone; here scancel does it, since Slurm's own clock counts minutes."""
    jobs = [start(slurm, script) for script in LAUNCHERS]
    for job in jobs:
        wait_until_it_trains(slurm, job)
        slurm.call("scancel", "--batch", "--signal=USR1", job)
    for job in jobs:
        check_it_went_on(slurm, job, unbroken, ended_with="75")


def test_a_job_that_is_preempted(slurm: Cluster, unbroken: Unbroken) -> None:
    """srun's ranks get SIGTERM and save. mpirun loses a daemon, ends with 0, and nobody believes it."""
    jobs = by_mpirun, by_srun = [start(slurm, script) for script in LAUNCHERS]
    for job in jobs:
        wait_until_it_trains(slurm, job)
    preempt(slurm)
    check_it_went_on(slurm, by_mpirun, unbroken)
    check_it_went_on(slurm, by_srun, unbroken, ended_with="75")


def test_a_cancelled_job_saves_and_does_not_come_back(slurm: Cluster) -> None:
    job = start(slurm, "srun")
    wait_until_it_trains(slurm, job)
    slurm.call("scancel", job)
    assert "goes on later" not in slurm.wait(job, "CANCELLED")
    last = numbers(slurm.run_dir(job))[-1][0]
    assert (slurm.run_dir(job) / "checkpoints" / f"step-{last:08}").exists()
    slurm.wait_until(lambda: None if slurm.call("squeue", "--noheader") else True, job)
    assert slurm.job(job)["Restarts"] == "0"


def test_an_array(slurm: Cluster) -> None:
    """Each task takes its line of the file; one for which there is none fails."""
    job = slurm.submit("--array=0-3", "slurm/array.sh", *SMALL, "--train.steps", 2)
    lines = (REPOSITORY / "slurm" / "sweep.txt").read_text().splitlines()
    for task, line in enumerate(lines):
        slurm.wait(f"{job}_{task}")
        config = tomllib.loads((slurm.home / f"runs/sweep-{job}/{task}/config.toml").read_text())
        assert config["optim"]["lr"] == float(line.split()[-1])
    output = slurm.wait(f"{job}_3", "FAILED")
    assert output == "slurm: error: task 3 has no line in slurm/sweep.txt, which has 3\n"


def test_the_check_of_a_sound_environment(slurm: Cluster) -> None:
    job = slurm.submit("--ntasks-per-node=2", "--gpus-per-task=1", "slurm/check.sh")
    output = slurm.wait(job)
    assert output.count("check: all is well") == 2, output
    for node in ("n1    0 1  ", "n2    2 3  "):
        assert output.count(node) == 2, output
    assert output.count("0 | 1") == 2, f"srun gives each rank a GPU of its own:\n{output}"


WRONG_MPI = {"LAUNCHERS": "srun", "MPI_TYPE": "none"}
NO_PYTHON = {"VIRTUAL_ENV": "/nowhere", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("broken, error", [
    (WRONG_MPI, "check: error: the launcher started 4 processes, but MPI sees 1 of them; "),
    (NO_PYTHON, "slurm: error: no python here has minitrain; /nowhere, or PATH; "),
], ids=["MPI", "Python"])  # fmt: skip
def test_the_check_of_a_broken_environment(broken: dict[str, str], error: str, slurm: Cluster) -> None:
    output = slurm.wait(slurm.submit("--ntasks-per-node=2", "slurm/check.sh", **broken), "FAILED")
    errors = [line for line in output.splitlines() if ": error: " in line and not line.startswith("srun:")]
    assert len(errors) == 1 and errors[0].startswith(error), output


def test_two_at_once_and_nothing_stays(slurm: Cluster, tmp_path: Path) -> None:
    second = Cluster(tmp_path)
    job = second.submit("--nodes=2", "--wrap", "sleep 1000 & setsid sleep 1000 & srun sleep 1000")
    second.wait_until(lambda: True if len(second.processes()) > 8 else None, job)
    assert second.local("start").returncode == 1
    assert second.local("stop").returncode == 0
    assert not second.processes() and not second.folder.exists()
    assert "idle" in slurm.local("status").stdout


@pytest.mark.long
def test_by_the_clock_of_slurm(slurm: Cluster) -> None:
    """The time limit is in minutes, and the signal may come up to a minute earlier than asked for."""
    size = ("--time=2", "--signal=B:USR1@30", "--ntasks-per-node=1")
    job = slurm.submit(*size, "slurm/srun.sh", *SMALL, "--train.steps", 1_000_000)
    slurm.wait_until(lambda: True if "goes on from step" in slurm.output(job) else None, job)
    slurm.call("scancel", job)
    assert f"job {job} ended with 75 and goes on later" in slurm.wait(job, "CANCELLED")


@pytest.mark.long
def test_pre_emption_of_which_the_shell_is_told(tmp_path: Path, unbroken: Unbroken) -> None:
    """Where Slurm is so configured, mpirun has time for a checkpoint too."""
    slurm = Cluster(tmp_path)
    try:
        with (slurm.folder / "slurm.conf").open("a") as file:
            file.write("SlurmctldParameters=preempt_send_user_signal\n")
        slurm.call("scontrol", "reconfigure")
        job = start(slurm, "mpirun")
        wait_until_it_trains(slurm, job)
        preempt(slurm)
        check_it_went_on(slurm, job, unbroken, ended_with="75")
    finally:
        slurm.local("stop")


def end_step(slurm: Cluster, job: str) -> None:
    """The ranks exit with 75, for a reason that the batch shell does not know."""
    slurm.call("scancel", "--signal=TERM", job)


@pytest.mark.long
def test_the_ranks_alone_know_that_they_must_go_on(slurm: Cluster, unbroken: Unbroken) -> None:
    job = start(slurm, "srun")
    wait_until_it_trains(slurm, job)
    end_step(slurm, job)
    check_it_went_on(slurm, job, unbroken, ended_with="75")


@pytest.mark.long
@pytest.mark.parametrize("script, interrupt, old, new", [
    ("mpirun", preempt, "was_preempted #", "false #"),
    ("srun", end_step, 'if [ "$code" = 75 ]', 'if [ "$code" = 76 ]'),
], ids=["an exit with 0 is believed", "an exit with 75 is final"])  # fmt: skip
def test_a_planted_bug_is_noticed(
    script: str,
    interrupt: Callable[[Cluster, str], None],
    old: str,
    new: str,
    slurm: Cluster,
    unbroken: Unbroken,
) -> None:
    common = slurm.home / "slurm" / "common.sh"
    sound = common.read_text()
    assert sound.count(old) == 1
    common.write_text(sound.replace(old, new))
    try:
        job = start(slurm, script)
        wait_until_it_trains(slurm, job)
        interrupt(slurm, job)
        with pytest.raises(AssertionError, match="start 1"):
            check_it_went_on(slurm, job, unbroken)
    finally:
        common.write_text(sound)
