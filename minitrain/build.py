"""Everything that a run works with, made from its configuration: data, stage, optimizer, schedule."""

from pathlib import Path
from typing import NamedTuple

from minitrain.arrays.device import HOST, Device, Gpu
from minitrain.checkpoint.digests import digest, digest_own_part
from minitrain.checkpoint.manifest import DataSeen, Manifest
from minitrain.checkpoint.resuming import check_data, check_files, check_if_checkpoint, restore, saved_values
from minitrain.checkpoint.weights import initial_values
from minitrain.comm.agree import together
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm
from minitrain.config import Config
from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokens import TokenFile, check_all_ids, check_length, open_tokens, split
from minitrain.observe.memory import MemoryMeter
from minitrain.optim import make_optimizer
from minitrain.optim.cuda.elementwise import Updates
from minitrain.optim.judge import make_judge
from minitrain.optim.optimizer import Elementwise
from minitrain.parallel.schedule import SCHEDULES
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill
from minitrain.parallel.update import Updater
from minitrain.step import Batch, Trainer


class Run(NamedTuple):
    """What this rank works with."""

    trainer: Trainer
    loader: Loader
    heldout: HeldOut | None
    tokens: TokenFile
    data: DataSeen


def build(config: Config, world: Comm, checkpoint: Manifest | None = None, device: Device = HOST) -> Run:
    """Everything that a run needs, at its beginning or as the checkpoint `config.run.resume` has it; arrays
    in the memory of `device`.

    Collective; if any rank cannot build its part, all raise that error.
    """
    grid, resume = make_grid(world, config, device), Path(config.run.resume)
    tokens = together(world, lambda: _open_data(config, world))
    data = _look_at(tokens, world) if checkpoint or config.run.keep else DataSeen(len(tokens.tokens), "")
    if checkpoint:
        if not config.run.accept_new_data:
            together(world, lambda: check_data(checkpoint.data, data, tokens.name))
        together(world, lambda: check_files(resume, checkpoint, world))
    elif config.run.init_from:
        source = Path(config.run.init_from)
        together(world, lambda: check_if_checkpoint(source, world))
    return together(world, lambda: _build_local(config, grid, tokens, data, checkpoint, device))


def _look_at(tokens: TokenFile, world: Comm) -> DataSeen:
    """To know the data again. Collective: each rank reads its share."""
    ids = tokens.tokens
    words = together(world, lambda: digest_own_part(ids, world, lambda: check_length(tokens)))
    world.all_reduce(words)
    return DataSeen(len(ids), digest(words.tobytes() + ids.dtype.str.encode()))


def _open_data(config: Config, world: Comm) -> TokenFile:
    tokens = open_tokens(config.data)
    check_all_ids(tokens, config.model.vocab, world.rank, world.size)
    return tokens


def _build_local(
    config: Config,
    grid: Grid,
    tokens: TokenFile,
    seen: DataSeen,
    checkpoint: Manifest | None,
    device: Device,
) -> Run:
    model, data, train, dp = config.model, config.data, config.train, grid.dp
    assert train.global_batch is not None
    training, held_out = split(tokens, data.holdout, model.seq_len)
    loader = Loader(training, model.seq_len, train.global_batch, train.seed, data.shuffle, model.vocab)
    limit = train.eval_sequences
    validation = HeldOut(held_out, model.seq_len, train.micro_batch, dp.rank, dp.size, limit, model.vocab)
    resume = Path(config.run.resume)
    fill = saved_values(config, resume) if checkpoint else initial_values(config)
    trainer = make_trainer(config, grid, fill, device)
    if checkpoint:
        restore(config, trainer, resume, checkpoint)
    return Run(trainer, loader, validation if data.holdout else None, tokens, seen)


def make_trainer(config: Config, grid: Grid, fill: Fill, device: Device = HOST) -> Trainer:
    """The stage with its weights, and all that trains it."""
    optimizer = make_optimizer(config.optim)
    align = optimizer.align if isinstance(optimizer, Elementwise) else 1
    stage = Stage(config, grid, fill, align, device)
    kernels = Updates(device) if isinstance(device, Gpu) else None
    updater = Updater(optimizer, config.optim, grid, config.train.seed, kernels)
    for unit in stage.units:
        updater.init(unit)
    loss_scale = config.loss_scale if stage.precision.scales_loss else None
    return Trainer(
        stage=stage,
        grid=grid,
        schedule=SCHEDULES[config.parallel.schedule],
        updater=updater,
        judge=make_judge(loss_scale, config.optim.clip, device),
        meter=MemoryMeter(),
    )


def load_batch(config: Config, run: Run, step: int) -> Batch:
    """This rank's micro-batches of the global batch of `step`, in the memory of its device."""
    train, seq_len, dp = config.train, config.model.seq_len, run.trainer.grid.dp
    assert train.global_batch is not None
    ids_BT, targets_BT = run.loader.batch(step, dp.rank, dp.size)
    device, shape = run.trainer.stage.memory.device, (-1, train.micro_batch * seq_len)
    ids_MN, targets_MN = (device.to_device(x_BT.reshape(shape)) for x_BT in (ids_BT, targets_BT))
    return Batch(ids_MN, targets_MN, train.global_batch * seq_len)
