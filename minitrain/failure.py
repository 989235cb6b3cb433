"""How a run ends that cannot go on: one line for the user, one exit code, and no rank left waiting."""

import signal
import sys
import time
import traceback
from pathlib import Path

from minitrain.comm.interface import World
from minitrain.errors import ConfigError, InternalError, MinitrainError, Problem, one_line, render

INTERRUPTED = 130  # as a shell reports the signal of Ctrl-C
OUT_OF_MEMORY = 2  # what was asked for does not fit: a matter of configuration
NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
OF_CUDA = ("CUDARuntimeError", "CUDADriverError")  # as CuPy names what comes from CUDA
GRACE = 0.2  # seconds in which the launcher passes on what was printed, before its own words about the end
DELAY = 2 * GRACE  # seconds a rank, so that one speaks when several fail at once
LONGEST_DELAY = 3.0


def fail(error: BaseException, world: World, debug: bool) -> int:
    """Says once what went wrong and ends the whole job with the exit code, at once or by returning it."""
    code = exit_code_of(error)
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would interrupt the end
    if world.size == 1 or (isinstance(error, MinitrainError) and error.known_everywhere):
        if world.rank == 0:
            complain(error, debug)
        world.barrier()  # the launcher ends all once one has ended: not before the line is out
        return code
    if isinstance(error, MinitrainError) and error.told_by not in (None, world.rank):
        time.sleep(LONGEST_DELAY)  # the job has ended by then
    time.sleep(min(DELAY * world.rank, LONGEST_DELAY))
    complain(error, debug, rank=world.rank)
    time.sleep(GRACE)
    world.abort(code)
    return code


def complain(error: BaseException, debug: bool = False, rank: int | None = None) -> None:
    """Writes the error on standard error."""
    lines = traceback.format_exception(error) if debug else []
    if isinstance(error, KeyboardInterrupt):
        lines.append("minitrain: interrupted")
    else:
        of = "configuration" if exit_code_of(error) == ConfigError.exit_code else "checkpoint"
        lines.append(render(_of_rank(problems_of(error), rank), of))
    try:
        print("\n".join(line.rstrip() for line in lines), file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody listens


def exit_code_of(error: BaseException) -> int:
    """The code of errors.py; for errors that nobody foresaw the one of a defect."""
    if isinstance(error, MinitrainError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return InternalError.exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host or of a GPU. CuPy's own is a MemoryError. What it passes on from CUDA and cuBLAS is known
    by its words, as nothing of these is imported here.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


def problems_of(error: BaseException) -> list[Problem]:
    """What to tell the user about any error."""
    if isinstance(error, MinitrainError):
        return [Problem(*(one_line(part) for part in problem)) for problem in error.problems]
    message, place = one_line(str(error)), _place(error)
    if is_out_of_memory(error):
        remedy = "lower train.micro_batch or the model's sizes, or split it over more ranks (tp, pp, zero)"
        return [Problem(f"out of memory: {message or 'nothing more to allocate'}", place, remedy)]
    name, remedy = type(error).__name__, "run again with --debug for the traceback"
    if name in OF_CUDA:
        remedy = "a GPU tells of it late: run again with CUDA_LAUNCH_BLOCKING=1 and --debug for the place"
    return [Problem(f"{name}: {message}" if message else name, place, remedy)]


def _of_rank(problems: list[Problem], rank: int | None) -> list[Problem]:
    return [p if rank is None else p._replace(what=f"rank {rank}: {p.what}") for p in problems]


def _place(error: BaseException) -> str:
    """File and line of the raise: the innermost place in this package, else the innermost at all."""
    package = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if package in Path(frame.filename).parents]
    if not frames:
        return "unknown place"
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(package.parent) if ours else path.name}:{frame.lineno}"
