"""A training run from its configuration to its last line."""

import time
from typing import NamedTuple

import numpy as np

from minitrain.checkpoint.weights import export_weights, initial_values
from minitrain.comm.agree import agree
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config
from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokens import TokenFile, open_tokens, split
from minitrain.errors import MinitrainError
from minitrain.generate import continue_tokens, readable
from minitrain.observe.memory import MemoryMeter
from minitrain.observe.recorder import AnyRecorder, StepMetrics
from minitrain.optim import Optimizer, make_optimizer
from minitrain.optim.schedule import learning_rate
from minitrain.parallel.schedule import SCHEDULES
from minitrain.parallel.stage import Stage
from minitrain.step import Batch, evaluate, train_step


class Run(NamedTuple):
    """What this rank trains with."""

    grid: Grid
    stage: Stage
    optimizer: Optimizer
    loader: Loader
    heldout: HeldOut | None
    tokens: TokenFile


def build(config: Config, world: Comm) -> Run:
    """Everything that a run needs. Collective; if any rank cannot build its part, all raise that rank's error."""
    grid = make_grid(world, config)
    error: MinitrainError | None = None
    try:
        run = _build_local(config, grid)
    except MinitrainError as problem:
        error = problem
    agree(world, error)
    return run


def _build_local(config: Config, grid: Grid) -> Run:
    model, data, train = config.model, config.data, config.train
    assert train.global_batch is not None
    tokens = open_tokens(data, model.vocab)
    training, held_out = split(tokens, data.holdout, model.seq_len)
    loader = Loader(training, model.seq_len, train.global_batch, train.seed, data.shuffle, model.vocab)
    heldout = None
    if data.holdout:
        dp = grid.dp
        heldout = HeldOut(held_out, model.seq_len, train.micro_batch, dp.rank, dp.size, train.eval_sequences, model.vocab)
    stage = Stage(config, grid, initial_values(config))
    optimizer = make_optimizer(config.optim)
    for unit in stage.units:
        unit.state = optimizer.init(unit.master)
    return Run(grid, stage, optimizer, loader, heldout, tokens)


def load_batch(config: Config, run: Run, step: int) -> Batch:
    """This rank's micro-batches of the global batch of `step`."""
    assert config.train.global_batch is not None
    ids_BT, targets_BT = run.loader.batch(step, run.grid.dp.rank, run.grid.dp.size)
    n_tokens_micro = config.train.micro_batch * config.model.seq_len
    n_tokens = config.train.global_batch * config.model.seq_len
    return Batch(ids_BT.reshape(-1, n_tokens_micro), targets_BT.reshape(-1, n_tokens_micro), n_tokens)


def train(config: Config, world: Comm, recorder: AnyRecorder) -> None:
    """Trains, validates, samples, exports. Every rank calls it; rank 0's recorder writes and prints."""
    sent = ByteCounter()
    run = build(config, traced(world, sent))
    stage, grid, steps = run.stage, run.grid, config.train.steps
    schedule, meter = SCHEDULES[config.parallel.schedule], MemoryMeter()
    recorder.begin(config)
    n_tokens = 0
    for step in range(1, steps + 1):
        start = time.perf_counter()
        lr = learning_rate(step, steps, config.optim)
        batch = load_batch(config, run, step)
        result = train_step(stage, grid, schedule, run.optimizer, config.optim, batch, lr, step, meter)
        n_tokens += batch.n_tokens
        recorder.step(
            StepMetrics(
                step=step, loss=result.loss, grad_norm=result.grad_norm, lr=lr, tokens=n_tokens,
                seconds=time.perf_counter() - start, loss_scale=1.0, skipped=False,
                memory_bytes=meter.bytes(stage), comm_bytes=sent.take(),
            )  # fmt: skip
        )
        due = step == steps or (config.train.eval_every > 0 and step % config.train.eval_every == 0)
        if due and run.heldout is not None:
            recorder.evaluation(step, evaluate(stage, grid, run.heldout, run.heldout.n_tokens))
            sent.take()  # a step's bytes are those of training alone
    if config.run.export_hf:
        export_weights(config, stage, grid, world)
    if config.run.sample_tokens and grid.dp.rank == 0:  # one replica writes; the others are done
        recorder.sample(_sample(config, run))
    recorder.end()


def _sample(config: Config, run: Run) -> str:
    """Text (ids, where the data has no tokenizer) that starts with a new line, or with the first token of the data."""
    prompt = np.array([ord("\n")]) if run.tokens.tokenizer else run.tokens.tokens[:1].astype(np.int64)
    ids = continue_tokens(run.stage, run.grid, prompt, config.run.sample_tokens, config.run.temperature, config.train.seed)
    return readable(ids, run.tokens.tokenizer)
