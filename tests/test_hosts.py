"""minitrain on several hosts (scripts/hosts_local): namespaces of this machine, with TCP between them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import HANG_LIMIT, REPOSITORY, run, run_minitrain

CANNOT = 69  # what scripts/hosts_local ends with where there can be no hosts
HOSTS_LOCAL = str(REPOSITORY / "scripts" / "hosts_local")
HOSTS = 4
SMALL = "--model.width 64 --data.holdout 0.001 --run.sample_tokens 0 --run.export_hf false".split()


class Hosts:
    """Four hosts and an mpirun that starts its daemons on them."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"  # with `ip`
        self.variables = {"HOSTS_LOCAL": name, "PATH": path}

    def local(self, *args: object) -> subprocess.CompletedProcess[str]:
        command = [HOSTS_LOCAL, *map(str, args)]
        return run(command, cwd=REPOSITORY, env=self.variables)

    def mpirun(self, ranks: int, *python: object) -> subprocess.CompletedProcess[str]:
        """`python ...` on as many ranks, the same number on each host."""
        mapping = ("-n", ranks, "--map-by", f"ppr:{ranks // HOSTS}:node")
        return self.local("mpirun", *mapping, sys.executable, *python)

    def bytes_sent(self) -> int:
        return sum(int(line.split()[1]) for line in self.local("bytes").stdout.splitlines())

    def namespaces(self) -> list[str]:
        listed = run(["ip", "netns", "list"], env=self.variables).stdout.split()
        return [word for word in listed if word.startswith(self.name)]

    def processes(self) -> list[str]:
        return [
            pid
            for space in self.namespaces()
            for pid in run(["ip", "netns", "pids", space], env=self.variables).stdout.split()
        ]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    hosts = Hosts("test")
    up = hosts.local("up", HOSTS)
    if up.returncode == CANNOT:
        pytest.skip(up.stderr.strip())
    assert up.returncode == 0, up.stderr
    yield hosts
    hosts.local("down")
    assert not hosts.namespaces()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("ranks, layout", [
    (4, "--parallel.dp 4 --parallel.zero 1"), (8, "--parallel.dp 2 --parallel.tp 2 --parallel.pp 2"),
])  # fmt: skip
def test_four_hosts_compute_what_one_does(ranks: int, layout: str, hosts: Hosts, tmp_path: Path) -> None:
    """Bit for bit: with the same ranks, Open MPI adds in the same order wherever they are."""
    arguments = (*SMALL, *layout.split(), "--train.steps", 10)
    before = hosts.bytes_sent()
    several = hosts.mpirun(ranks, "-m", "minitrain", *arguments, "--run.dir", tmp_path / "several")
    assert several.returncode == 0, several.stderr
    sent = hosts.bytes_sent() - before

    one = run_minitrain(*arguments, "--run.dir", tmp_path / "one", ranks=ranks)
    assert one.returncode == 0, one.stderr
    expected, found = metrics(tmp_path / "one"), metrics(tmp_path / "several")
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in found] == [line[name] for line in expected]

    # What minitrain says a rank sends has crossed, and TCP's own on top. Two tp ranks are on one host.
    said = sum(
        n for line in found for axis, ops in line["comm_bytes"].items() if axis != "tp" for n in ops.values()
    )
    assert sent > ranks * said


def test_a_rank_that_dies_on_another_host_ends_the_job(hosts: Hosts, tmp_path: Path) -> None:
    arguments = (*SMALL, "--train.steps", 1000, "--run.dir", tmp_path)
    done = hosts.mpirun(HOSTS, "tests/faulty.py", "kill@collective", 2, 3, "--", *arguments)
    assert done.returncode != 0
    assert len(metrics(tmp_path)) == 2
    assert not hosts.processes()


def test_the_check_finds_a_directory_that_is_not_shared(hosts: Hosts) -> None:
    """Each host has a /dev/shm of its own."""
    done = hosts.mpirun(HOSTS, "slurm/check.py", "--ranks", HOSTS, "--nodes", HOSTS, "/dev/shm")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("check: error: ")]
    assert len(errors) == 1 and errors[0].startswith("check: error: /dev/shm does not show what "), (
        done.stderr
    )


def test_nothing_is_left_behind() -> None:
    hosts = Hosts("other")
    if hosts.local("up", 2).returncode == CANNOT:
        pytest.skip("no hosts can be made here")
    running = subprocess.Popen(
        [HOSTS_LOCAL, "run", "other1", "sleep", "1000"],
        env=os.environ | hosts.variables,
        start_new_session=True,
    )
    while not hosts.processes():
        assert running.poll() is None
    assert hosts.local("up", 2).returncode == 1, "there are hosts of this name"
    assert hosts.local("down").returncode == 0
    assert running.wait(HANG_LIMIT) == -signal.SIGKILL
    assert not hosts.namespaces() and not Path("/tmp/hosts-local-other").exists()
