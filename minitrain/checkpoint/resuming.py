"""Going on from a checkpoint, in any layout: each rank reads its parts of every tensor and nothing else."""

import os
import stat
from dataclasses import replace
from pathlib import Path

from minitrain.checkpoint.catalogue import MANIFEST, STATE, remedy_for
from minitrain.checkpoint.digests import CHUNK, digest_own_chunks, first_difference
from minitrain.checkpoint.huggingface import HFReader
from minitrain.checkpoint.manifest import DataSeen, Manifest, read_manifest
from minitrain.checkpoint.safetensors_file import FLOATS, StoredTensor, open_tensors
from minitrain.checkpoint.state import read_state, state_tensors
from minitrain.checkpoint.weights import stored_values
from minitrain.comm.interface import Comm
from minitrain.config import Config
from minitrain.errors import CheckpointError, DataError
from minitrain.optim.optimizer import Optimizer
from minitrain.parallel.unit import Fill
from minitrain.step import Trainer


def check_files(directory: Path, manifest: Manifest, comm: Comm) -> None:
    """Raises CheckpointError if a file is not what was written. Each rank reads its share of the chunks."""
    for name, file in manifest.files.items():
        path = directory / name
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError("it is no plain file", str(path), remedy_for(directory))
            if status.st_size != file.bytes:
                what = f"the file has {status.st_size} bytes, not {file.bytes}"
                raise CheckpointError(what, str(path), remedy_for(directory))
            chunk = first_difference(digest_own_chunks(path, file.bytes, comm), file.chunks, comm)
        except OSError as problem:
            what = f"the file cannot be read ({problem.strerror or problem})"
            raise CheckpointError(what, str(path), remedy_for(directory)) from None
        if chunk is not None:
            what = f"something in bytes {chunk * CHUNK} to {min((chunk + 1) * CHUNK, file.bytes)} has changed"
            raise CheckpointError(what, str(path), remedy_for(directory))


def check_if_checkpoint(directory: Path, comm: Comm) -> None:
    """Weights may come from any Hugging Face directory; those of a checkpoint must have its checksums."""
    if os.path.lexists(directory / MANIFEST):
        check_files(directory, read_manifest(directory), comm)


def saved_values(config: Config, directory: Path) -> Fill:
    """The weights of a checkpoint, to fill a stage with. Raises CheckpointError."""
    return stored_values(HFReader(directory, config.model), config)


def restore(config: Config, trainer: Trainer, directory: Path, manifest: Manifest) -> None:
    """Everything but the weights. Raises CheckpointError."""
    tensors = open_tensors(directory / STATE)
    saved = replace(config, parallel=manifest.config.parallel)
    check_state(tensors, saved, trainer.updater.optimizer, directory / STATE)
    read_state(tensors, trainer, saved.parallel.tp == config.parallel.tp)
    kept, seen = trainer.judge.kept()._replace(updates=manifest.updates), manifest.loss_scale
    if trainer.stage.precision.scales_loss and seen:
        kept = kept._replace(scale=seen.scale, good_steps=seen.good_steps, tolerated=seen.tolerated)
    trainer.judge.restore(kept)


def check_data(seen: DataSeen, now: DataSeen, name: str) -> None:
    """Raises DataError if the run would go on with other data than it began with."""
    if seen == now:
        return
    changed = f"{now.tokens} tokens, not {seen.tokens}" if now.tokens != seen.tokens else "other tokens"
    what = f"the data are not those of the checkpoint: {changed}"
    raise DataError(what, name, "give the same data, or --run.accept_new_data true to go on with these")


def check_state(stored: dict[str, StoredTensor], config: Config, optimizer: Optimizer, path: Path) -> None:
    """Raises CheckpointError unless these are exactly the tensors of such a run, of their shapes, of any
    float type. Those of fp8 may be missing or too many.
    """
    expected = state_tensors(config, optimizer)
    remedy = "take another checkpoint, or start from the weights alone with run.init_from"
    for name in sorted(stored.keys() ^ expected.keys()):
        if not name.startswith("fp8."):
            what = "is missing" if name in expected else "is none of this model's and optimizer's"
            raise CheckpointError(f"tensor {name[:200]} {what}", str(path), remedy)
    for name, tensor in stored.items():
        if name in expected and tensor.shape != expected[name].shape:
            what = f"tensor {name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}"
            raise CheckpointError(what, str(path), remedy)
        if tensor.dtype not in FLOATS.values():
            what = f"tensor {name[:200]} is of type {tensor.dtype}, none of {', '.join(FLOATS)}"
            raise CheckpointError(what, str(path), remedy)
