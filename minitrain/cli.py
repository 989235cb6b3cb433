"""Commands, from the start of the process to its exit code."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from minitrain.comm.agree import broadcast_text
from minitrain.comm.interface import World
from minitrain.config_text import from_json
from minitrain.errors import CheckpointError, MinitrainError
from minitrain.failure import complain, fail
from minitrain.launch import join
from minitrain.launched import launched
from minitrain.observe.console import say, show
from minitrain.prepare import Job, prepare
from minitrain.watch.software import require_same_software


def main(argv: list[str] | None = None) -> int:
    """Runs one command on this rank and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    launch = launched(os.environ)
    try:
        world = join(launch)
    except MinitrainError as error:  # without a world each process is alone: the first speaks for all
        if launch.rank == 0:
            complain(error, debug)
        return error.exit_code
    with ExitStack() as held:  # by rank 0: the lock of the run directory
        try:
            require_same_software(world)
            job = agree_on_job(argv, world, debug, held)
            return run(job, world) if job.exit_code is None else job.exit_code
        except BaseException as error:
            held.close()  # `fail` may end the process
            return fail(error, world, debug)


def agree_on_job(argv: list[str], world: World, debug: bool, held: ExitStack) -> Job:
    """Rank 0 reads the arguments and tells the others; what is wrong with them is printed once."""
    text = None
    if world.rank == 0:
        try:
            text = prepare(argv, world.size, held).to_text()
        except MinitrainError as error:
            complain(error, debug)
            text = Job(exit_code=error.exit_code).to_text()
    return Job.from_text(broadcast_text(world, text))


def run(job: Job, world: World) -> int:
    """Does what the job says."""
    COMMANDS[job.command](job, world)
    return 0


def _train(job: Job, world: World) -> None:
    from minitrain.arrays.heap import keep_freed_memory
    from minitrain.checkpoint.manifest import trusted
    from minitrain.observe.recorder import Recorder, SilentRecorder
    from minitrain.stop import StopRequest
    from minitrain.train import train

    keep_freed_memory()
    config = from_json(job.config)
    checkpoint = trusted(job.checkpoint) if job.checkpoint else None
    stop = StopRequest()

    def on_rank(world: World) -> None:
        with closing(Recorder(job.notices) if world.rank == 0 else SilentRecorder()) as recorder:
            train(config, world, recorder, stop, checkpoint)

    with stop.listening():
        if config.collectives == "threads":
            from minitrain.comm.threads import run_threads

            parallel = config.parallel
            assert parallel.dp and parallel.tp and parallel.pp
            run_threads(parallel.dp * parallel.tp * parallel.pp, on_rank)
        else:
            on_rank(join(launched(os.environ), use_mpi=True) if config.collectives == "mpi" else world)


def _generate(job: Job, world: World) -> None:
    from minitrain.generate import generate_text

    assert job.rest is not None
    rest = job.rest
    show(generate_text(rest["directory"], rest["prompt"], rest["tokens"], rest["temperature"], rest["seed"]))


def _convert(job: Job, world: World) -> None:
    from minitrain.checkpoint.huggingface import convert
    from minitrain.checkpoint.resuming import check_if_checkpoint

    assert job.rest is not None
    check_if_checkpoint(Path(job.rest["source"]), world)
    for notice in convert(job.rest["source"], job.rest["destination"]):
        say(notice)
    say(f"wrote {job.rest['destination']}")


def _checkpoint(job: Job, world: World) -> None:
    from minitrain.checkpoint.listing import found, list_checkpoints, verify

    assert job.rest is not None
    directory = job.rest["directory"]
    if job.rest["action"] == "ls":
        show(list_checkpoints(directory))
        return
    problems = []
    for path in found(directory):
        try:
            show(verify(path))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError.everywhere(problems, CheckpointError.exit_code)


def _plan(job: Job, world: World) -> None:
    from minitrain.plan.command import plan_text

    assert job.rest is not None
    for notice in job.notices:
        say(notice)
    show(plan_text(from_json(job.config), job.rest))


def _study(job: Job, world: World) -> None:
    from minitrain.study import TOPICS

    assert job.rest is not None
    topic = TOPICS[job.rest["topic"]]
    given = {name: job.rest[name] for name in topic.options if job.rest[name] is not None}
    topic.run(world, **topic.options | given)


def _report(job: Job, world: World) -> None:
    from minitrain.report.write import write_report

    assert job.rest is not None
    run, out = Path(job.rest["run"]), job.rest["out"]
    show(f"wrote {write_report(run, run / 'report' if out is None else Path(out))}")


COMMANDS: dict[str, Callable[[Job, World], None]] = {
    "train": _train,
    "generate": _generate,
    "convert": _convert,
    "checkpoint": _checkpoint,
    "plan": _plan,
    "study": _study,
    "report": _report,
}
