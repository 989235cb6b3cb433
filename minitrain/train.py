"""A training run from its configuration to its last line."""

import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.backend import opened
from minitrain.build import Run, build, load_batch
from minitrain.checkpoint.catalogue import checkpoint_name, clean, is_own, set_aside
from minitrain.checkpoint.manifest import Manifest
from minitrain.checkpoint.saving import Saver
from minitrain.checkpoint.weights import export_weights
from minitrain.comm.agree import together
from minitrain.comm.checked import checked
from minitrain.comm.interface import World
from minitrain.comm.traced import ByteCounter, Ledger, Watch, traced
from minitrain.config import Config
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.data.tokenizer import IdTokenizer
from minitrain.drills import plant
from minitrain.errors import CheckpointError, Problem, TryAgainError
from minitrain.generate import continue_tokens
from minitrain.observe.chrome_trace import gather_timelines
from minitrain.observe.clocks import clock_offset
from minitrain.observe.recorder import AnyRecorder, StepMetrics
from minitrain.observe.run_directory import CHECKPOINTS
from minitrain.observe.timeline import Both, Timeline, observe_units, observed_schedule
from minitrain.optim.schedule import learning_rate
from minitrain.parallel.replicas import compare_replicas
from minitrain.step import StartedStep, Trainer, evaluate, require_finite, start_step
from minitrain.stop import StopRequest
from minitrain.watch.calls import CallLog
from minitrain.watch.pace import Pace
from minitrain.watch.watchdog import watchdog


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
    timeline = Timeline() if config.run.trace else None
    with watchdog(config, world, calls), opened(config, world, calls) as backend:
        offset = clock_offset(backend.world) if timeline else None
        ledger, watch = listeners(sent, calls, timeline)
        comm = traced(checked(backend.world) if config.run.check else backend.world, ledger, watch)
        run = build(config, comm, checkpoint, backend.device)
        plant(config.run.drill, run)
        if timeline:
            run = run._replace(trainer=observed(run.trainer, timeline))
        begun = checkpoint.step if checkpoint else 0
        if config.run.resume != "no":
            together(comm, lambda: tidy(config, begun, recorder) if comm.rank == 0 else None)
        together(comm, lambda: recorder.begin(config, begun, backend.hardware))
        if checkpoint and run.data != checkpoint.data:
            was, now = checkpoint.data.tokens, run.data.tokens
            recorder.notice(f"other data from here on: {now} tokens, and {was} up to step {begun}")
        loop = Loop(config, run, recorder, stop or StopRequest(), sent, calls, timeline)
        with np.errstate(all="ignore"):  # what is not finite is reported by the step itself
            loop.go(begun, checkpoint.tokens if checkpoint else 0)
        if timeline and offset:
            recorder.trace(gather_timelines(timeline, offset, comm))
        grid = run.trainer.grid
        if config.run.export_hf:
            replace = config.run.export_hf is True and same_run(config, begun)
            export_weights(config, run.trainer.stage, grid, run.tokens.kind, replace)
        if config.run.sample_tokens and grid.replica.rank == 0:  # one replica writes, all its shards together
            recorder.sample(_sample(config, run))
        recorder.end()
        comm.barrier()  # nobody leaves, and is watched no more, while another may wait for it


class _Started(NamedTuple):
    """A step, and what is to be written down of it."""

    started: StartedStep
    lr: float
    tokens: int  # trained on, this step included
    begun: float  # time.perf_counter
    sent: dict[str, dict[str, int]]  # bytes by axis and verb


class Loop:
    """The steps of a run, and what happens between two of them. Every rank does all of it together.

    A GPU works at its own time. While it is at a step the host starts the next one, and only then reads what
    came of the step before: the GPU never waits for the host, and an error is told one step late. Whatever
    looks at the weights between two steps reads all of them first.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        recorder: AnyRecorder,
        stop: StopRequest,
        sent: ByteCounter,
        calls: CallLog,
        timeline: Timeline | None,
    ) -> None:
        self._config, self._run, self._recorder, self._stop = config, run, recorder, stop
        self._sent, self._pace, self._timeline = sent, Pace(calls), timeline
        self._step, self._tokens = 0, 0
        self._saver: Saver | None = None
        self._lag = 1 if isinstance(run.trainer.stage.memory.device, Gpu) else 0
        self._under_way: deque[_Started] = deque()
        self._last_end = 0.0
        self._last_noted = 0

    def go(self, begun: int, tokens: int) -> None:
        """From step `begun` + 1, when `tokens` have been trained on, to the last."""
        config, steps = self._config, self._config.train.steps
        self._saver = make_saver(config, self._run, begun)
        self._step, self._tokens = begun, tokens
        self._last_noted = begun + (config.run.trace_steps or steps)
        while self._step < steps:
            self._step += 1
            self._under_way.append(self._start_one_step())
            self._record(left=self._lag)
            if self._is_due(config.run.compare_every):
                self._compare()
            if self._run.heldout and (self._step == steps or self._is_due(config.train.eval_every)):
                self._validate()
            if self._is_due(config.run.save_every):
                self._save(background=config.run.background)
            if self._all_are_to_stop() and self._step < steps:
                self._stop_here()
        self._save(last=True)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._step % every == 0

    def _start_one_step(self) -> "_Started":
        config, trainer, step = self._config, self._run.trainer, self._step
        begun = time.perf_counter()
        self._sent.take()  # a step's bytes are its own: not those of a validation before it
        if self._timeline and step <= self._last_noted:
            self._timeline.begin_step(step)
        lr = learning_rate(step, config.train.steps, config.optim)
        with self._pace.step():
            batch = load_batch(config, self._run, step)
            if curvature_is_due(config.optim, trainer, step):
                estimate_curvature(trainer, batch, config.train.seed, step)
            started = start_step(trainer, batch, lr, step)
        if self._timeline:
            self._timeline.end_step(trainer.meter.bytes(trainer.stage))
        self._tokens += batch.n_tokens
        return _Started(started, lr, self._tokens, begun, self._sent.take())

    def _record(self, left: int = 0) -> None:
        """Waits for the steps under way but the last `left` of them, and writes down what came of each."""
        trainer = self._run.trainer
        while len(self._under_way) > left:
            step = self._under_way.popleft()
            result = step.started.result()
            begun, self._last_end = max(step.begun, self._last_end), time.perf_counter()
            self._recorder.step(
                StepMetrics(
                    step=step.started.step,
                    loss=result.loss,
                    grad_norm=result.grad_norm,
                    lr=step.lr,
                    tokens=step.tokens,
                    seconds=self._last_end - begun,
                    loss_scale=result.loss_scale,
                    skipped=result.skipped,
                    memory_bytes=trainer.meter.bytes(trainer.stage),
                    comm_bytes=step.sent,
                )
            )

    def _compare(self) -> None:
        """Whether replicas are still alike, and no rank is much slower than its peers."""
        self._record()
        trainer = self._run.trainer
        compare_replicas(trainer.stage, trainer.updater.optimizer, trainer.grid, self._step)
        self._tell(self._pace.warnings(trainer.grid.world, trainer.grid.pp.rank))

    def _validate(self) -> None:
        self._record()
        trainer, heldout = self._run.trainer, self._run.heldout
        assert heldout
        loss = evaluate(trainer.stage, trainer.grid, heldout, heldout.n_tokens)
        require_finite({"held-out loss": loss}, self._step)
        self._recorder.evaluation(self._step, loss)

    def _save(self, background: bool = False, last: bool = False) -> None:
        self._record()
        if self._saver:
            together(self._run.trainer.grid.world, self._recorder.flush)
            self._tell(self._saver.save(self._step, self._tokens, background, last))

    def _all_are_to_stop(self) -> bool:
        """Whether any rank was told to stop. On the way, on with the checkpoint in the background."""
        saver, world = self._saver, self._run.trainer.grid.world
        flags = np.array([self._stop.asked, bool(saver and saver.busy)], np.int64)
        world.all_reduce(flags, "max")
        if saver and saver.pending and not flags[1]:
            self._tell(saver.advance())
        return bool(flags[0])

    def _stop_here(self) -> None:
        """Saves, and raises the same error on every rank."""
        self._save(last=True)
        where, remedy = "run.keep 0: no checkpoint", "start it again, from the beginning"
        if self._saver:
            where = f"checkpoint {self._config.run.dir}/{CHECKPOINTS}/{checkpoint_name(self._step)}"
            remedy = "start it again with --run.resume auto"
        what = f"told to stop after step {self._step} of {self._config.train.steps}"
        raise TryAgainError.everywhere([Problem(what, where, remedy)], TryAgainError.exit_code)

    def _tell(self, warnings: list[str]) -> None:
        for warning in warnings:
            self._recorder.notice(warning)


def listeners(ledger: Ledger, watch: Watch, timeline: Timeline | None) -> tuple[Ledger, Watch]:
    """These, or what tells them and the timeline."""
    if timeline is None:
        return ledger, watch
    both = Both(ledger, watch, timeline)
    return both, both


def observed(trainer: Trainer, timeline: Timeline) -> Trainer:
    """The trainer, of whose work the timeline hears from now on."""
    observe_units(trainer.stage, timeline)
    return trainer._replace(schedule=observed_schedule(trainer.schedule, timeline))


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
    saved = begun if same_run(config, begun) else 0
    return Saver(config, run.trainer, directory, run.data, run.tokens.kind, saved)


def same_run(config: Config, begun: int) -> bool:
    """Whether the checkpoint of step `begun` is one of this run's own directory, and no branch begins."""
    return begun > 0 and is_own(Path(config.run.resume), config.run.dir)


def _sample(config: Config, run: Run) -> str:
    """Text that starts with a new line; ids that start with the data's first, where it has no tokenizer."""
    tokenizer, tokens = run.tokens.tokenizer, run.tokens.tokens
    prompt = np.array([ord("\n")]) if tokenizer else tokens[:1].astype(np.int64)
    trainer, n_tokens = run.trainer, config.run.sample_tokens
    ids = continue_tokens(
        trainer.stage, trainer.grid, prompt, n_tokens, config.run.temperature, config.train.seed
    )
    return (tokenizer or IdTokenizer()).decode(ids)
