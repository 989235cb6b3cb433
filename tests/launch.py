"""Start minitrain, or any Python, on one or several ranks, and never leave a process behind.

What is started depends on nothing but its arguments: variables of another launcher, or of a CI, are taken
out of the environment, and those that Open MPI and BLAS need are put in (to run as root, more ranks than
cores, one thread a rank, shared memory and TCP only).
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[1]
HANG_LIMIT = 300.0  # seconds; a limit for what hangs, not a statement about speed
LAST_BREATH = 10.0  # seconds in which processes may end whose leader has

_FOREIGN = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "SLURM_", "CI", "BUILD_NUMBER")  # prefixes
_ADDED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "^uct,ofi",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Done(subprocess.CompletedProcess[str]):
    """What became of a command. `orphans`: processes of its session that did not end with it."""

    orphans: tuple[int, ...] = ()


class HangError(AssertionError):
    """The command was still running at its limit; the message ends with what it had written."""


def run_minitrain(
    *args: object,
    ranks: int = 1,
    cwd: Path | None = None,
    timeout: float = HANG_LIMIT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -m minitrain ARGS` alone, or through `mpirun -n RANKS` when ranks > 1."""
    command = [sys.executable, "-m", "minitrain", *map(str, args)]
    return run(under_mpirun(command, ranks), cwd=cwd, timeout=timeout, env=env)


def run_python(
    code: str | Path,
    *args: object,
    ranks: int = 1,
    cwd: Path | None = None,
    timeout: float = HANG_LIMIT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A file (`Path`) or a text (`str`) of Python on several ranks. A rank that raises ends the others."""
    script = [str(code)] if isinstance(code, Path) else ["-c", code]
    abort_on_error = [] if ranks == 1 else ["-m", "mpi4py"]
    command = [sys.executable, *abort_on_error, *script, *map(str, args)]
    return run(under_mpirun(command, ranks), cwd=cwd, timeout=timeout, env=env)


def under_mpirun(command: Sequence[str], ranks: int) -> list[str]:
    """`command` on `ranks` ranks, by the mpirun of this Python's environment where there is one."""
    if ranks == 1:
        return list(command)
    beside_python = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside_python) if beside_python.exists() else "mpirun"
    return [mpirun, "-n", str(ranks), *command]


def run(
    command: Sequence[str],
    cwd: Path | None = None,
    timeout: float = HANG_LIMIT,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run `command` in a session of its own, and end whatever is left of it. Raises `HangError` at the limit.

    Output goes to files, since a pipe would stay open for as long as an orphan holds it.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(command, cwd, out, err, env)
        hung = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            orphans = end_session(process)
        stdout, stderr = _text(out), _text(err)
    if hung:
        raise HangError(
            f"still running after {timeout:g} s: {' '.join(command)}\n{(stdout + stderr)[-6000:]}"
        )
    done = Done(list(command), process.returncode, stdout, stderr)
    done.orphans = orphans
    return done


def start(
    command: Sequence[str],
    cwd: Path | None,
    out: IO[bytes],
    err: IO[bytes],
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Begins `command` in a session of its own. To be followed by `end_session`, whatever happens."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment | _ADDED | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )


def _text(file: "tempfile._TemporaryFileWrapper[bytes]") -> str:
    file.seek(0)
    return file.read().replace(b"\0", b"").decode(errors="replace").replace("\r\n", "\n")


def end_session(leader: "subprocess.Popen[bytes]") -> tuple[int, ...]:
    """Ask the leader to end, then kill every process of its session that does not; these are returned.

    In this order: mpirun, told to end, ends its ranks; killed, it leaves them behind. Ranks have process
    groups of their own, but share mpirun's session.
    """
    if leader.poll() is None:
        leader.terminate()
        try:
            leader.wait(5)
        except subprocess.TimeoutExpired:
            leader.kill()
            leader.wait()
    deadline = time.monotonic() + LAST_BREATH
    while (orphans := tuple(session_members(leader.pid))) and time.monotonic() < deadline:
        time.sleep(0.01)
    deadline = time.monotonic() + 5
    while (left := session_members(leader.pid)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    tidy_after_launchers()
    return orphans


def tidy_after_launchers() -> None:
    """Open MPI's mpirun that is killed leaves a directory, named by its process; the next one of the same
    number fails: "The PMIx server's listener thread failed to start".
    """
    directories = list(Path(tempfile.gettempdir()).glob("ompi.*"))
    alive = set(map(str, living_processes()))  # afterwards: another test may be starting one
    for directory in directories:
        pid = directory.suffix[1:]
        if pid.isdigit() and pid not in alive:
            shutil.rmtree(directory, ignore_errors=True)


def session_members(session: int) -> list[int]:
    """Ids of the living processes of a session."""
    members = []
    for pid in living_processes():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                members.append(pid)
    return members


def living_processes() -> Iterator[int]:
    """Ids of all processes but those that have ended and wait to be collected."""
    if Path("/proc/self/stat").exists():
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    yield int(process.name)
    else:
        for line in subprocess.check_output(["ps", "-A", "-o", "pid=,stat="], text=True).splitlines():
            pid, state = line.split()
            if not state.startswith("Z"):
                yield int(pid)
