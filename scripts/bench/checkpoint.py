"""How fast a checkpoint of 1 GB is written and read by 4 ranks, as a share of what dd does on the same disk,
and what it needs of memory beyond the model's.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minitrain.arrays.heap import keep_freed_memory
from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.checkpoint.catalogue import checkpoint_name
from minitrain.checkpoint.manifest import FILES, DataSeen, read_manifest
from minitrain.checkpoint.resuming import check_files, restore, saved_values
from minitrain.checkpoint.saving import Saver
from minitrain.comm.agree import broadcast_text, together
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.config import Config, ModelConfig, ParallelConfig, RunConfig
from minitrain.launch import join
from minitrain.launched import launched
from minitrain.model.spec import ParamSpec, model_specs
from minitrain.resolve import fill_model, resolve
from minitrain.step import Trainer

MODEL = fill_model(ModelConfig(layers=6, width=1024, heads=16, vocab=4096))  # 86 million parameters
LAYOUTS = {
    "zero 1": ParallelConfig(dp=4, zero=1),
    "tp 2": ParallelConfig(dp=2, tp=2),
    "pp 2": ParallelConfig(dp=1, tp=2, pp=2),
}
DATA = DataSeen(1, "0" * 32)


def measure(layout: str, world: Comm, directory: Path, dd_first: bool) -> dict[str, float]:
    """Seconds and bytes of one round. dd writes as many bytes, and reads the checkpoint's own files. Whoever
    reads finds nothing in the page cache; but a virtual machine's host may remember, so they take turns. Both
    write new files, and find a disk that has nothing left to do; removing them is not timed.
    """
    run = RunConfig(keep=1)
    config = resolve(Config(model=MODEL, parallel=LAYOUTS[layout], run=run), {}, world.size).config
    trainer = make_trainer(config, make_grid(world, config), ones)
    saver, path = Saver(config, trainer, directory, DATA, "ids"), directory / checkpoint_name(1)
    n_bytes = sum(spec.size for spec in model_specs(MODEL)) * 3 * 4
    found: dict[str, float] = {"bytes": n_bytes}

    def dd_writes() -> None:
        to = f"of={directory / 'dd'}"
        found["dd write"] = dd(world, "if=/dev/zero", to, f"count={n_bytes >> 20}", "conv=fsync")
        remove(world, directory / "dd")

    def we_write() -> None:
        before = resident(world, reset=True)
        found["write"] = timed(world, lambda: saver.save(1, 1, last=True))
        found["memory of a write"] = resident(world) - before

    def dd_reads() -> None:
        forget(world, path)
        found["dd read"] = sum(dd(world, f"if={path / name}", "of=/dev/null") for name in FILES)

    def we_read() -> None:
        forget(world, path)
        before = resident(world, reset=True)
        found["read"] = timed(world, lambda: load(config, trainer, path))
        found["memory of a read"] = resident(world) - before

    for both in ((dd_writes, we_write), (dd_reads, we_read)):
        for action in both if dd_first else reversed(both):
            action()
    remove(world, path)
    return found


def ones(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
    return np.ones([cut.stop - cut.start for cut in box], np.float32)


def load(config: Config, trainer: Trainer, path: Path) -> None:
    """As a run that goes on does it, but for what makes the trainer."""
    manifest, fill = read_manifest(path), saved_values(config, path)
    together(trainer.grid.world, lambda: check_files(path, manifest, trainer.grid.world))
    for unit in trainer.stage.units:
        for spec, box in zip(unit.specs, unit.boxes, strict=True):
            fill(spec, box)
    restore(config, trainer, path, manifest)


def timed(world: Comm, action: Callable[[], object]) -> float:
    """Seconds until the last rank has done it."""
    world.barrier()
    start = time.perf_counter()
    action()
    world.barrier()
    return time.perf_counter() - start


def dd(world: Comm, *arguments: str) -> float:
    """Seconds. On rank 0, while the others sleep: waiting ranks would take its core."""
    start = time.perf_counter()
    if world.rank == 0:
        subprocess.run(["dd", "bs=1M", *arguments], check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    sleep_until_rank_0_is_done(world)
    return seconds


def sleep_until_rank_0_is_done(world: Comm) -> None:
    """A barrier that does not spin."""
    if world.rank == 0:
        handles = [world.start_send(np.zeros(1), rank) for rank in range(1, world.size)]
        for handle in handles:
            handle.wait()
    else:
        time.sleep(1.0)
        world.recv(np.zeros(1), 0)


def forget(world: Comm, path: Path) -> None:
    """Takes the files out of the page cache."""
    for name in FILES if world.rank == 0 else ():
        file = os.open(path / name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    world.barrier()


def remove(world: Comm, path: Path) -> None:
    """Takes a file or directory away, and waits until the disk has done what that takes."""
    if world.rank == 0:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()
    sleep_until_rank_0_is_done(world)


def resident(world: Comm, reset: bool = False) -> float:
    """Bytes: the resident size, now or at its highest since it was reset, of the rank that has most."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = np.array([float(status["VmRSS" if reset else "VmHWM"].split()[0]) * 1024])
    world.all_reduce(most, "max")
    return float(most[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    keep_freed_memory()
    world = join(launched(os.environ))
    name = tempfile.mkdtemp(dir=arguments.dir) if world.rank == 0 else None
    directory = Path(broadcast_text(world, name))
    figures: dict[str, dict[str, float]] = {}
    try:
        for layout in LAYOUTS:
            rounds = [measure(layout, world, directory, r % 2 == 0) for r in range(arguments.rounds)]
            figures[layout] = {key: statistics.median(r.get(key, 0.0) for r in rounds) for key in rounds[0]}
            if world.rank == 0:
                show(layout, rounds)
    finally:
        world.barrier()
        if world.rank == 0:
            shutil.rmtree(directory)
    if world.rank == 0 and arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def show(layout: str, rounds: list[dict[str, float]]) -> None:
    largest = max(spec.size for spec in model_specs(MODEL)) * 4
    for what in ("write", "read"):
        shares = [r[f"dd {what}"] / r[what] for r in rounds]
        speed = statistics.median(r["bytes"] / r[what] / 1e9 for r in rounds)
        of_dd = statistics.median(r["bytes"] / r[f"dd {what}"] / 1e9 for r in rounds)
        memory = max(r[f"memory of a {what}"] for r in rounds) / largest
        print(
            f"{layout:<8}{what:<6}{speed:6.2f} GB/s, dd {of_dd:5.2f} GB/s: {statistics.median(shares):5.2f} "
            f"of it ({min(shares):.2f} to {max(shares):.2f}); memory + {memory:.2f} of the largest tensor",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
