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
from pathlib import Path

import numpy as np

from minitrain.arrays.heap import keep_freed_memory
from minitrain.build import make_trainer
from minitrain.checkpoint.catalogue import checkpoint_name
from minitrain.checkpoint.manifest import FILES, DataSeen, read_manifest
from minitrain.checkpoint.resuming import check_files, restore, saved_values
from minitrain.checkpoint.saving import Saver
from minitrain.comm.agree import broadcast_text, together
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.config import Config, ModelConfig, ParallelConfig, RunConfig
from minitrain.launch import join, launched
from minitrain.model.spec import model_specs
from minitrain.resolve import fill_model, resolve

MODEL = fill_model(ModelConfig(layers=6, width=1024, heads=16, vocab=4096))  # 86 million parameters
LAYOUTS = {
    "zero 1": ParallelConfig(dp=4, zero=1),
    "tp 2": ParallelConfig(dp=2, tp=2),
    "pp 2": ParallelConfig(dp=1, tp=2, pp=2),
}
DATA = DataSeen(1, "0" * 32)


def measure(layout: str, world: Comm, directory: Path) -> dict[str, float]:
    """Seconds and bytes of one round: dd writes, we write, dd reads, we read; nothing is in the page cache
    when it is read.
    """
    run = RunConfig(keep=1)
    config = resolve(Config(model=MODEL, parallel=LAYOUTS[layout], run=run), {}, world.size).config
    grid = make_grid(world, config)
    trainer = make_trainer(config, grid, lambda spec, box: np.ones([cut.stop - cut.start for cut in box]))
    saver, path = Saver(config, trainer, directory, DATA, "ids"), directory / checkpoint_name(1)
    n_bytes = sum(spec.size for spec in model_specs(MODEL)) * 3 * 4
    found: dict[str, float] = {"bytes": n_bytes}

    if world.rank == 0:
        found["dd write"] = dd(
            "if=/dev/zero", f"of={directory / 'dd'}", f"count={n_bytes >> 20}", "conv=fsync"
        )
    before = peak_anonymous(world, reset=True)
    found["write"] = timed(world, lambda: saver.save(1, 1))
    found["peak of a write"] = peak_anonymous(world) - before
    if world.rank == 0:
        forget(directory / "dd", *(path / name for name in FILES))
        found["dd read"] = dd(f"if={directory / 'dd'}", "of=/dev/null")
    manifest = read_manifest(path)
    fill = saved_values(config, path)

    def load() -> None:
        together(world, lambda: check_files(path, manifest, world))
        for unit in trainer.stage.units:
            for spec, box in zip(unit.specs, unit.boxes, strict=True):
                fill(spec, box)
        restore(config, trainer, path, manifest)

    before = peak_anonymous(world, reset=True)
    found["read"] = timed(world, load)
    found["peak of a read"] = peak_anonymous(world) - before
    return found


def timed(world: Comm, action: object) -> float:
    """Seconds until the last rank has done it."""
    world.barrier()
    start = time.perf_counter()
    action()  # type: ignore[operator]
    world.barrier()
    return time.perf_counter() - start


def dd(*arguments: str) -> float:
    """Seconds."""
    start = time.perf_counter()
    subprocess.run(["dd", "bs=1M", *arguments], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def forget(*paths: Path) -> None:
    """Takes files out of the page cache."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def peak_anonymous(world: Comm, reset: bool = False) -> float:
    """Bytes: the largest resident size of any rank so far, or now, from when it is counted anew."""
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
            rounds = [measure(layout, world, directory) for _ in range(arguments.rounds)]
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
        memory = max(r[f"peak of a {what}"] for r in rounds) / largest
        print(
            f"{layout:<8}{what:<6}{speed:6.2f} GB/s, dd {of_dd:5.2f} GB/s: {statistics.median(shares):5.2f} "
            f"of it ({min(shares):.2f} to {max(shares):.2f}); peak memory + {memory:.2f} of the largest tensor",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
