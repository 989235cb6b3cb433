"""A training run from its configuration to its last line."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitrain.checkpoint.catalogue import CHECKPOINTS, checkpoint_name, clean, set_aside
from minitrain.checkpoint.digests import digest_of_array
from minitrain.checkpoint.manifest import DataSeen, Manifest
from minitrain.checkpoint.resuming import check_data, check_files, restore, saved_values
from minitrain.checkpoint.saving import Saver
from minitrain.checkpoint.weights import export_weights, initial_values
from minitrain.comm.agree import together
from minitrain.comm.checked import checked
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm, World
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokenizer import IdTokenizer
from minitrain.data.tokens import TokenFile, check_all_ids, open_tokens, split
from minitrain.errors import CheckpointError, Problem, TryAgainError
from minitrain.generate import continue_tokens
from minitrain.observe.memory import MemoryMeter
from minitrain.observe.recorder import AnyRecorder, StepMetrics
from minitrain.optim import make_optimizer
from minitrain.optim.loss_scale import LossScale
from minitrain.optim.optimizer import Elementwise
from minitrain.optim.schedule import learning_rate
from minitrain.parallel.replicas import compare_replicas
from minitrain.parallel.schedule import SCHEDULES
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill
from minitrain.parallel.update import Updater
from minitrain.step import Batch, Trainer, evaluate, require_finite, train_step
from minitrain.stop import StopRequest
from minitrain.watch.calls import CallLog
from minitrain.watch.pace import Pace
from minitrain.watch.watchdog import watchdog


class Run(NamedTuple):
    """What this rank works with."""

    trainer: Trainer
    loader: Loader
    heldout: HeldOut | None
    tokens: TokenFile
    data: DataSeen


def build(config: Config, world: Comm, checkpoint: Manifest | None = None) -> Run:
    """Everything that a run needs, at its beginning or as the checkpoint `config.run.resume` has it.

    Collective; if any rank cannot build its part, all raise that error.
    """
    grid, resume = make_grid(world, config), Path(config.run.resume)
    tokens = together(world, lambda: _open_data(config, world))
    data = DataSeen(len(tokens.tokens), digest_of_array(tokens.tokens, world))
    if checkpoint:
        if not config.run.accept_new_data:
            check_data(checkpoint.data, data, tokens.name)
        together(world, lambda: check_files(resume, checkpoint, world))
    return together(world, lambda: _build_local(config, grid, tokens, data, checkpoint))


def _open_data(config: Config, world: Comm) -> TokenFile:
    tokens = open_tokens(config.data)
    check_all_ids(tokens, config.model.vocab, world.rank, world.size)
    return tokens


def _build_local(
    config: Config, grid: Grid, tokens: TokenFile, seen: DataSeen, checkpoint: Manifest | None
) -> Run:
    model, data, train, dp = config.model, config.data, config.train, grid.dp
    assert train.global_batch is not None
    training, held_out = split(tokens, data.holdout, model.seq_len)
    loader = Loader(training, model.seq_len, train.global_batch, train.seed, data.shuffle, model.vocab)
    limit = train.eval_sequences
    validation = HeldOut(held_out, model.seq_len, train.micro_batch, dp.rank, dp.size, limit, model.vocab)
    resume = Path(config.run.resume)
    trainer = make_trainer(
        config, grid, saved_values(config, resume) if checkpoint else initial_values(config)
    )
    if checkpoint:
        restore(config, trainer, resume, checkpoint)
    return Run(trainer, loader, validation if data.holdout else None, tokens, seen)


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


def train(
    config: Config,
    world: World,
    recorder: AnyRecorder,
    stop: StopRequest | None = None,
    checkpoint: Manifest | None = None,
) -> None:
    """Trains, validates, saves, exports, samples. Every rank calls it; rank 0's recorder writes and prints.

    `checkpoint` is the manifest of `config.run.resume`, if the run goes on from one. Raises TryAgainError,
    after a checkpoint, when `stop` was asked for on any rank.
    """
    sent, calls = ByteCounter(), CallLog()
    with watchdog(config, world, calls):
        comm = traced(checked(world) if config.run.check else world, sent, calls)
        run = build(config, comm, checkpoint)
        begun = checkpoint.step if checkpoint else 0
        together(comm, lambda: recorder.begin(config, begun))
        together(comm, lambda: tidy(config, begun, recorder) if comm.rank == 0 else None)
        saver = make_saver(config, run, begun)
        with np.errstate(all="ignore"):  # what is not finite is reported by the step itself
            _train_all_steps(config, run, sent, calls, recorder, saver, stop or StopRequest(), checkpoint)
        grid = run.trainer.grid
        if config.run.export_hf:
            goes_on = config.run.export_hf is True and config.run.resume != "no"
            export_weights(config, run.trainer.stage, grid, run.tokens.kind, replace=goes_on)
        if config.run.sample_tokens and grid.replica.rank == 0:  # one replica writes, all its shards together
            recorder.sample(_sample(config, run))
        recorder.end()
        comm.barrier()  # nobody leaves, and is watched no more, while another may wait for it


def tidy(config: Config, begun: int, recorder: AnyRecorder) -> None:
    """On rank 0, when no other job can be in the run directory: what a crash left there goes, and checkpoints
    after the one that the run goes on from get another name.
    """
    if config.run.dir is None:
        return
    directory = Path(config.run.dir) / CHECKPOINTS
    try:
        clean(directory)
        for path in set_aside(directory, begun):
            recorder.notice(f"a later checkpoint is now {path}")
    except OSError as problem:
        what = f"unfinished checkpoints cannot be removed ({problem.strerror})"
        raise CheckpointError(what, str(directory), "check permissions there") from None


def make_saver(config: Config, run: Run, begun: int) -> Saver | None:
    """What writes the run's checkpoints; `begun` is the step of the one that it goes on from."""
    if config.run.dir is None or not config.run.keep:
        return None
    directory = Path(config.run.dir) / CHECKPOINTS
    own = Path(config.run.resume).absolute().parent == directory.absolute()
    return Saver(config, run.trainer, directory, run.data, run.tokens.kind, saved=begun if own else 0)


def _train_all_steps(
    config: Config,
    run: Run,
    sent: ByteCounter,
    calls: CallLog,
    recorder: AnyRecorder,
    saver: Saver | None,
    stop: StopRequest,
    checkpoint: Manifest | None,
) -> None:
    trainer, steps, every = run.trainer, config.train.steps, config.train.eval_every
    begun, n_tokens = (checkpoint.step, checkpoint.tokens) if checkpoint else (0, 0)
    pace = Pace(calls)
    for step in range(begun + 1, steps + 1):
        start = time.perf_counter()
        sent.take()  # a step's bytes are its own: not those of a validation before it
        lr = learning_rate(step, steps, config.optim)
        with pace.step():
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
        if config.run.compare_every and step % config.run.compare_every == 0:
            compare_replicas(trainer.stage, trainer.updater.optimizer, trainer.grid, step)
            _tell(recorder, pace.warnings(trainer.grid.world, trainer.grid.pp.rank))
        if run.heldout and (step == steps or (every and step % every == 0)):
            loss = evaluate(trainer.stage, trainer.grid, run.heldout, run.heldout.n_tokens)
            require_finite({"held-out loss": loss}, step)
            recorder.evaluation(step, loss)
        if saver and saver.is_due(step):
            _tell(recorder, saver.save(step, n_tokens, config.run.background))
        if _between_steps(trainer.grid.world, saver, stop, recorder) and step < steps:
            _stop(config, recorder, saver, stop, step, n_tokens)
    if saver:
        _tell(recorder, saver.save(steps, n_tokens, last=True))


def _between_steps(world: Comm, saver: Saver | None, stop: StopRequest, recorder: AnyRecorder) -> bool:
    """Whether all ranks stop now; and on with the checkpoint that is written in the background."""
    flags = np.array([stop.asked, bool(saver and saver.busy)], np.int64)
    world.all_reduce(flags, "max")
    if saver and saver.pending and not flags[1]:
        _tell(recorder, saver.advance())
    return bool(flags[0])


def _stop(
    config: Config, recorder: AnyRecorder, saver: Saver | None, stop: StopRequest, step: int, n_tokens: int
) -> None:
    """Every rank saves and raises the same error."""
    where, remedy = "run.keep 0", "it begins again from the start"
    if saver:
        _tell(recorder, saver.save(step, n_tokens, last=True))
        where = f"checkpoint {config.run.dir}/{CHECKPOINTS}/{checkpoint_name(step)}"
        remedy = "start it again with --run.resume auto"
    what = f"told to stop after step {step} of {config.train.steps}"
    raise TryAgainError.everywhere([Problem(what, where, remedy)], TryAgainError.exit_code)


def _tell(recorder: AnyRecorder, warnings: list[str]) -> None:
    for warning in warnings:
        recorder.notice(warning)


def _sample(config: Config, run: Run) -> str:
    """Text that starts with a new line; ids that start with the data's first, where it has no tokenizer."""
    tokenizer, tokens = run.tokens.tokenizer, run.tokens.tokens
    prompt = np.array([ord("\n")]) if tokenizer else tokens[:1].astype(np.int64)
    trainer, n_tokens = run.trainer, config.run.sample_tokens
    ids = continue_tokens(
        trainer.stage, trainer.grid, prompt, n_tokens, config.run.temperature, config.train.seed
    )
    return (tokenizer or IdTokenizer()).decode(ids)
