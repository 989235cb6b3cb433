"""Where the weights of a run come from and where they go: any layout reads and writes the same directory."""

from pathlib import Path

import numpy as np

from minitrain.arrays.blocks import all_finite
from minitrain.arrays.device import on_host
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array
from minitrain.checkpoint.hf_config import read_hf_model_config
from minitrain.checkpoint.huggingface import (
    HFReader,
    HFWriter,
    commit_hf,
    create_hf,
    partial_directory,
    writing_weights,
)
from minitrain.checkpoint.parts import parts_to_write
from minitrain.comm.agree import together
from minitrain.comm.grid import Grid
from minitrain.config import Config
from minitrain.data.philox import normal
from minitrain.errors import CheckpointError
from minitrain.model.spec import ParamSpec
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill
from minitrain.precision import PRECISIONS

EXPORT = "hf"  # where a run directory has its weights


def initial_values(config: Config) -> Fill:
    """The weights in `run.init_from`, or random ones: a function of (seed, name, global index) alone.

    Raises CheckpointError if the directory is not that of a model we know.
    """
    dtype = compute_type(PRECISIONS[config.precision].param)  # rounded where it is put
    if config.run.init_from is None:
        return lambda spec, box: _random(config.train.seed, spec, box, dtype)
    stored, _ = read_hf_model_config(config.run.init_from)
    return stored_values(HFReader(config.run.init_from, stored), config)


def stored_values(reader: HFReader, config: Config) -> Fill:
    """The weights of a directory, to fill a stage with. Raises CheckpointError where one is beyond what the
    run's precision can hold.
    """
    param = PRECISIONS[config.precision].param
    dtype = compute_type(param)  # rounded where it is put

    def read(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
        stored = reader.read(spec, box)
        with np.errstate(over="ignore"):
            values = stored.astype(dtype, copy=False)
            rounded = values.astype(param, copy=False)
        if rounded is not stored and not all_finite(rounded.reshape(-1)):
            what = f"a weight of {spec.name} is beyond the numbers of {config.precision}"
            raise CheckpointError(what, str(reader.directory), "choose another precision, such as fp32")
        return values

    return read


def _random(seed: int, spec: ParamSpec, box: tuple[slice, ...], dtype: np.dtype[np.generic]) -> Array:
    if not spec.init_std:
        shape = [extent.stop - extent.start for extent in box]
        return np.full(shape, 1.0 if spec.init_std is None else 0.0, dtype)
    return normal(seed, spec.name, spec.shape, box, spec.init_std, dtype)


def export_directory(config: Config) -> Path | None:
    """Where `run.export_hf` wants the weights."""
    if config.run.export_hf is True:
        assert config.run.dir is not None
        return Path(config.run.dir) / EXPORT
    return Path(config.run.export_hf) if config.run.export_hf else None


def export_weights(config: Config, stage: Stage, grid: Grid, tokenizer: str, replace: bool = False) -> None:
    """Writes the weights as a Hugging Face directory, every rank its own parts. Collective.

    With `replace` the files of an earlier part of the same run give way.
    """
    directory, world = export_directory(config), grid.world
    assert directory is not None
    partial, dtype = partial_directory(directory), PRECISIONS[config.precision].param
    together(world, lambda: create_hf(partial, config.model, dtype, tokenizer) if world.rank == 0 else None)
    together(world, lambda: _write_parts(partial, config, stage, grid))
    together(world, lambda: commit_hf(partial, directory, replace) if world.rank == 0 else None)


def _write_parts(partial: Path, config: Config, stage: Stage, grid: Grid) -> None:
    writer = HFWriter(partial, config.model)
    with writing_weights(partial):
        for unit in stage.units:
            for part in parts_to_write(unit, grid):
                values = on_host(unit.param_shard[part.where])
                writer.write(part.held.spec, part.box, values.reshape(part.shape))
        writer.flush()
