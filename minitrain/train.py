"""A training run from its configuration to its last line."""

import time
from typing import NamedTuple

import numpy as np

from minitrain.checkpoint.weights import export_weights, initial_values
from minitrain.comm.agree import together
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokenizer import IdTokenizer
from minitrain.data.tokens import TokenFile, check_all_ids, open_tokens, split
from minitrain.generate import continue_tokens
from minitrain.observe.memory import MemoryMeter
from minitrain.observe.recorder import AnyRecorder, StepMetrics
from minitrain.optim import make_optimizer
from minitrain.optim.loss_scale import LossScale
from minitrain.optim.optimizer import Elementwise
from minitrain.optim.schedule import learning_rate
from minitrain.parallel.schedule import SCHEDULES
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill
from minitrain.parallel.update import Updater
from minitrain.step import Batch, Trainer, evaluate, require_finite, train_step


class Run(NamedTuple):
    """What this rank works with."""

    trainer: Trainer
    loader: Loader
    heldout: HeldOut | None
    tokens: TokenFile


def build(config: Config, world: Comm) -> Run:
    """Everything that a run needs. Collective; if any rank cannot build its part, all raise that error."""
    grid = make_grid(world, config)
    return together(world, lambda: _build_local(config, world, grid))


def _build_local(config: Config, world: Comm, grid: Grid) -> Run:
    model, data, train, dp = config.model, config.data, config.train, grid.dp
    assert train.global_batch is not None
    tokens = open_tokens(data)
    check_all_ids(tokens, model.vocab, world.rank, world.size)
    training, held_out = split(tokens, data.holdout, model.seq_len)
    loader = Loader(training, model.seq_len, train.global_batch, train.seed, data.shuffle, model.vocab)
    limit = train.eval_sequences
    validation = HeldOut(held_out, model.seq_len, train.micro_batch, dp.rank, dp.size, limit, model.vocab)
    trainer = make_trainer(config, grid, initial_values(config))
    return Run(trainer, loader, validation if data.holdout else None, tokens)


def make_trainer(config: Config, grid: Grid, fill: Fill) -> Trainer:
    """The stage with its weights, and all that trains it."""
    optimizer = make_optimizer(config.optim)
    stage = Stage(config, grid, fill, align=optimizer.align if isinstance(optimizer, Elementwise) else 1)
    updater = Updater(optimizer, config.optim, grid, config.train.seed)
    for unit in stage.units:
        updater.init(unit)
    return Trainer(
        stage=stage,
        grid=grid,
        schedule=SCHEDULES[config.parallel.schedule],
        updater=updater,
        loss_scale=LossScale(config.loss_scale) if stage.precision.scales_loss else None,
        clip=config.optim.clip,
        meter=MemoryMeter(),
    )


def load_batch(config: Config, run: Run, step: int) -> Batch:
    """This rank's micro-batches of the global batch of `step`."""
    train, seq_len, dp = config.train, config.model.seq_len, run.trainer.grid.dp
    assert train.global_batch is not None
    ids_BT, targets_BT = run.loader.batch(step, dp.rank, dp.size)
    n_rows = train.micro_batch * seq_len
    return Batch(ids_BT.reshape(-1, n_rows), targets_BT.reshape(-1, n_rows), train.global_batch * seq_len)


def train(config: Config, world: Comm, recorder: AnyRecorder) -> None:
    """Trains, validates, exports, samples. Every rank calls it; rank 0's recorder writes and prints."""
    sent = ByteCounter()
    run = build(config, traced(world, sent))
    together(world, lambda: recorder.begin(config))
    with np.errstate(all="ignore"):  # what is not finite is reported by the step itself
        _train_all_steps(config, run, sent, recorder)
    grid = run.trainer.grid
    if config.run.export_hf:
        tokenizer = "bytes" if run.tokens.tokenizer else "ids"
        export_weights(config, run.trainer.stage, grid, world, tokenizer)
    if config.run.sample_tokens and grid.replica.rank == 0:  # one replica writes, all its shards together
        recorder.sample(_sample(config, run))
    recorder.end()


def _train_all_steps(config: Config, run: Run, sent: ByteCounter, recorder: AnyRecorder) -> None:
    trainer, steps, every = run.trainer, config.train.steps, config.train.eval_every
    n_tokens = 0
    for step in range(1, steps + 1):
        start = time.perf_counter()
        sent.take()  # a step's bytes are its own: not those of a validation before it
        lr = learning_rate(step, steps, config.optim)
        batch, loss_scale = load_batch(config, run, step), trainer.scale
        if curvature_is_due(config.optim, trainer, step):
            estimate_curvature(trainer, batch, config.train.seed, step)
        result = train_step(trainer, batch, lr, step)
        n_tokens += batch.n_tokens
        metrics = StepMetrics(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            tokens=n_tokens,
            seconds=time.perf_counter() - start,
            loss_scale=loss_scale,
            skipped=result.skipped,
            memory_bytes=trainer.meter.bytes(trainer.stage),
            comm_bytes=sent.take(),
        )
        recorder.step(metrics)
        if run.heldout and (step == steps or (every and step % every == 0)):
            loss = evaluate(trainer.stage, trainer.grid, run.heldout, run.heldout.n_tokens)
            require_finite({"held-out loss": loss}, step)
            recorder.evaluation(step, loss)


def _sample(config: Config, run: Run) -> str:
    """Text that starts with a new line; ids that start with the data's first, where it has no tokenizer."""
    tokenizer, tokens = run.tokens.tokenizer, run.tokens.tokens
    prompt = np.array([ord("\n")]) if tokenizer else tokens[:1].astype(np.int64)
    trainer, n_tokens = run.trainer, config.run.sample_tokens
    ids = continue_tokens(
        trainer.stage, trainer.grid, prompt, n_tokens, config.run.temperature, config.train.seed
    )
    return (tokenizer or IdTokenizer()).decode(ids)
