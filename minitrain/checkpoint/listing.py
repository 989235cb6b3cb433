"""`checkpoint ls` and `checkpoint verify`: what lies in a directory, without MPI and without a run."""

import os
from pathlib import Path

from minitrain.checkpoint.catalogue import MANIFEST, STATE, checkpoints_in
from minitrain.checkpoint.huggingface import HFReader
from minitrain.checkpoint.manifest import Manifest, read_manifest
from minitrain.checkpoint.resuming import check_files, check_state
from minitrain.checkpoint.safetensors_file import open_tensors
from minitrain.comm.single import SingleComm
from minitrain.errors import CheckpointError, one_line
from minitrain.observe.run_directory import CHECKPOINTS
from minitrain.optim import make_optimizer

UNITS = ("B", "kB", "MB", "GB", "TB")


def list_checkpoints(directory: str) -> str:
    """A line for every checkpoint, the oldest first; of one that is damaged, what its manifest says about it
    cannot be told. Raises CheckpointError if there is none.
    """
    rows: list[tuple[str, ...]] = [
        ("checkpoint", "step", "size", "written", "precision", "optimizer", "layout")
    ]
    for path in found(directory):
        try:
            rows.append((path.name, *_described(read_manifest(path))))
        except CheckpointError as error:
            rows.append((path.name, one_line(f"damaged: {error.problems[0].what}")))
    widths = [max(len(row[i]) for row in rows if len(row) > 2 or i == 0) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{entry:<{width}}" for entry, width in zip(row, widths, strict=False)) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def verify(path: Path) -> str:
    """Reads every byte of a checkpoint. What is right is said in a line; else raises CheckpointError."""
    manifest = read_manifest(path)
    check_files(path, manifest, SingleComm())
    HFReader(path, manifest.config.model)
    check_state(
        open_tensors(path / STATE), manifest.config, make_optimizer(manifest.config.optim), path / STATE
    )
    n_chunks = sum(len(file.chunks) for file in manifest.files.values())
    return f"{path}: complete, {_size(manifest)}, {n_chunks} of {n_chunks} checksums right"


def found(directory: str) -> list[Path]:
    """The checkpoint that `directory` is, or those in it or in its run. Raises CheckpointError if none."""
    path = Path(directory)
    if os.path.lexists(path / MANIFEST):
        return [path]
    if paths := checkpoints_in(path / CHECKPOINTS) or checkpoints_in(path):
        return paths
    raise CheckpointError("there is no checkpoint", directory, "give a run's directory, or a checkpoint's")


def _described(manifest: Manifest) -> tuple[str, ...]:
    config = manifest.config
    parallel = config.parallel
    layout = f"dp {parallel.dp} x pp {parallel.pp} x tp {parallel.tp}, zero {parallel.zero}"
    written = one_line(manifest.written).replace("T", " ").removesuffix("+00:00")[:30]
    return str(manifest.step), _size(manifest), written, config.precision, config.optim.name, layout


def _size(manifest: Manifest) -> str:
    n, unit = float(sum(file.bytes for file in manifest.files.values())), 0
    while n >= 1000 and unit < len(UNITS) - 1:
        n, unit = n / 1000, unit + 1
    return f"{n:.3g} {UNITS[unit]}"
