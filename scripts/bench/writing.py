"""How fast 4 ranks write their boxes of 1 GB of matrices into one file: by position, a run of bytes at a time
(what checkpoints do), or by MPI-IO through a view of the rank's box, each for itself or all together.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from minitrain.arrays.types import Array
from minitrain.checkpoint.safetensors_file import Kind, create, open_tensors
from minitrain.durable import flush

ROWS, COLUMNS, MATRICES = 1024, 2816, 86  # fp32
TENSORS = {f"{i}": Kind((ROWS, COLUMNS), np.dtype(np.float32)) for i in range(MATRICES)}
N_BYTES = MATRICES * ROWS * COLUMNS * 4

Box = tuple[slice, slice]


def boxes_of(world: MPI.Comm) -> dict[str, Box]:
    """This rank's box of every matrix: a quarter of its rows; or half of them and half of its columns."""
    quarter, half, width = ROWS // 4, ROWS // 2, COLUMNS // 2
    i, j = divmod(world.rank, 2)
    return {
        "rows": (slice(world.rank * quarter, (world.rank + 1) * quarter), slice(0, COLUMNS)),
        "columns": (slice(i * half, (i + 1) * half), slice(j * width, (j + 1) * width)),
    }


def by_position(world: MPI.Comm, path: Path, box: Box, values: Array) -> None:
    rows, columns = box
    for tensor in open_tensors(path).values():
        tensor.write(np.arange(rows.start, rows.stop), columns, values)
    world.barrier()
    if world.rank == 0:
        flush(path)


def by_mpi(together: bool) -> Callable[[MPI.Comm, Path, Box, Array], None]:
    def write(world: MPI.Comm, path: Path, box: Box, values: Array) -> None:
        rows, columns = box
        starts = [rows.start, columns.start]
        view = MPI.FLOAT.Create_subarray([ROWS, COLUMNS], list(values.shape), starts).Commit()
        file = MPI.File.Open(world, str(path), MPI.MODE_WRONLY)
        for tensor in open_tensors(path).values():
            file.Set_view(tensor.offset, MPI.FLOAT, view)
            (file.Write_at_all if together else file.Write_at)(0, values)
        file.Sync()
        file.Close()
        view.Free()

    return write


WAYS = {"pwrite": by_position, "MPI-IO, each": by_mpi(together=False), "MPI-IO, all": by_mpi(together=True)}


def seconds(world: MPI.Comm, directory: Path, way: str, box: Box) -> float:
    """Of a new file, until it is on the disk."""
    path = directory / "file"
    if world.rank == 0:
        path.unlink(missing_ok=True)
        os.sync()
        create(path, TENSORS)
    values = np.ones([cut.stop - cut.start for cut in box], np.float32)
    world.barrier()
    start = time.perf_counter()
    WAYS[way](world, path, box, values)
    world.barrier()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="on the disk to measure (default: the temporary folder)")
    arguments = parser.parse_args()
    world = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory(dir=arguments.dir) as own:
        directory = Path(world.bcast(own))  # that of rank 0
        for cut, box in boxes_of(world).items():
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(arguments.rounds):
                for way in WAYS:
                    times[way].append(seconds(world, directory, way, box))
            for way, each in times.items() if world.rank == 0 else ():
                shares = [mine / its for mine, its in zip(times["pwrite"], each, strict=True)]
                speed = N_BYTES / statistics.median(each) / 1e9
                share = statistics.median(shares)
                print(f"cut by {cut:<8} {way:<13} {speed:5.2f} GB/s, {share:4.2f} of pwrite", flush=True)
        world.barrier()


if __name__ == "__main__":
    sys.exit(main())
