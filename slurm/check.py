"""Looks at what a training job would find, started as one: `LAUNCHER ... python slurm/check.py DIRECTORY`.

Prints nodes, ranks, versions, threads and GPUs, and whether all nodes share DIRECTORY. Exits with 1 and a
line for each thing that is wrong, `check: error: WHAT; WHERE; WHAT TO DO`.
"""

import argparse
import importlib.metadata
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from minitrain.comm.agree import broadcast_text, gather_texts
from minitrain.comm.interface import World
from minitrain.errors import ConfigError
from minitrain.launch import join
from minitrain.launched import Launch, launched

PATIENCE = 5.0  # seconds in which a file of another node must appear: network file systems are a little late
LINGER = 0.5  # seconds: the first rank that fails ends the others, and rank 0 has something to say

Facts = dict[str, dict[int, str]]  # name of a fact -> rank -> what that rank found


def main() -> int:
    arguments = parser().parse_args()
    launch = launched(os.environ)
    world, problems = enter(launch, arguments.ranks)
    if world is not None:
        facts = gather_facts(world)
        if world.rank == 0:
            print(table(facts), flush=True)
        problems = [
            *wrong_nodes(facts, arguments.nodes),
            *differences(facts),
            *too_many_threads(facts),
            *not_shared(world, arguments.directory, facts["node"]),
        ]
    if launch.rank == 0:  # all ranks know the problems
        for problem in problems:
            print(f"check: error: {problem}", file=sys.stderr)
        if not problems:
            print(f"check: all is well, and every rank sees what the others write to {arguments.directory}")
    elif problems:
        time.sleep(LINGER)
    return 1 if problems else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Looks at what a training job would find.")
    parser.add_argument("directory", type=Path, help="where the run directories will be")
    parser.add_argument("--ranks", type=int, help="how many ranks there must be")
    parser.add_argument("--nodes", type=int, help="on how many nodes")
    return parser


def enter(launch: Launch, ranks: int | None) -> tuple[World | None, list[str]]:
    """The world of all ranks as minitrain would find it, or what is wrong with it."""
    if ranks not in (None, launch.size):
        what = f"the job has {ranks} tasks, but this is one of {launch.size} processes"
        return None, [f"{what}; {launch.variable or 'no launcher'}; start it with mpirun or srun"]
    try:
        return join(launch, use_mpi=True), []
    except ConfigError as error:
        return None, ["; ".join(problem) for problem in error.problems]


def gather_facts(world: World) -> Facts:
    packages = ("minitrain", "numpy", "mpi4py")
    mine = {
        "node": platform.node(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "BLAS threads": os.environ.get("OPENBLAS_NUM_THREADS", "1"),  # if not set, minitrain sets 1
        "GPUs": gpus(),
        "Python": f"{platform.python_version()}, {sys.executable}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "MPI": mpi_version(),
    }
    return {name: gather_texts(world, text) for name, text in mine.items()}


def gpus() -> str:
    """Those that this rank may use, as its environment says or the driver shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return visible or "none"
    with suppress(OSError, subprocess.CalledProcessError):
        return str(len(subprocess.check_output(["nvidia-smi", "-L"], text=True).splitlines()))
    return "none"


def mpi_version() -> str:
    from mpi4py import MPI

    return MPI.Get_library_version().strip("\0\n ").split(",")[0]


def table(facts: Facts) -> str:
    """A line for each node, then what should be the same on all."""
    columns = ("cpus", "BLAS threads", "GPUs")
    lines = [("node", "ranks", *columns)]
    for node in dict.fromkeys(facts["node"].values()):
        ranks = [rank for rank, name in facts["node"].items() if name == node]
        values = (" | ".join(dict.fromkeys(facts[column][rank] for rank in ranks)) for column in columns)
        lines.append((node, " ".join(map(str, ranks)), *values))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*(row.rstrip() for row in rows), *(f"{name:9} {facts[name][0]}" for name in SAME)])


SAME = ("Python", "packages", "MPI")


def differences(facts: Facts) -> Iterator[str]:
    for name in SAME:
        for rank, text in facts[name].items():
            if text != facts[name][0]:
                what = f"{name} differs: {facts[name][0]}, but {text}"
                where = f"nodes {facts['node'][0]} and {facts['node'][rank]}"
                yield f"{what}; {where}; use the same environment on all"
                break


def wrong_nodes(facts: Facts, expected: int | None) -> Iterator[str]:
    nodes = dict.fromkeys(facts["node"].values())
    if expected not in (None, len(nodes)):
        what = f"the job has {expected} nodes, but the ranks are on {len(nodes)}"
        yield f"{what}; {', '.join(nodes)}; tell mpirun how to place them: --map-by ppr:N:node"


def too_many_threads(facts: Facts) -> Iterator[str]:
    for rank, threads in facts["BLAS threads"].items():
        cpus = facts["cpus"][rank]
        if threads.isdigit() and int(threads) > int(cpus):
            what = f"rank {rank} computes with {threads} threads on {cpus} CPUs"
            yield f"{what}; OPENBLAS_NUM_THREADS on node {facts['node'][rank]}; set it to 1"
            break


def not_shared(world: World, directory: Path, nodes: dict[int, str]) -> Iterator[str]:
    """Each rank writes a file and looks for those of all ranks. Every rank must take part."""
    token = broadcast_text(world, secrets.token_hex(4) if world.rank == 0 else None)
    files = [directory / f".check-{token}-{rank}" for rank in world.members]
    trouble = ""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files[world.rank].touch()
    except OSError as error:
        trouble = f"cannot be written: {error.strerror}"
    world.barrier()
    unseen = missing(files)
    if unseen and not trouble:
        trouble = f"does not show what {nodes[unseen[0]]} has written there"
    troubles = gather_texts(world, trouble)  # and all have looked
    with suppress(OSError):
        files[world.rank].unlink()
    for rank, what in troubles.items():
        if what:
            remedy = "run directories must be on a file system that all nodes share"
            yield f"{directory} {what}; node {nodes[rank]}; {remedy}"
            break


def missing(files: list[Path]) -> list[int]:
    deadline = time.monotonic() + PATIENCE
    while unseen := [rank for rank, file in enumerate(files) if not file.exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return unseen


if __name__ == "__main__":
    sys.exit(main())
