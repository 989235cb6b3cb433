"""`python -m minitrain`: one BLAS thread a rank, then the command line."""

import os
import signal
import sys

from minitrain.launched import launched


def start() -> int:
    """Imports the command line, which takes a moment, and returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, try_again)  # until a run listens to them
    attended = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if attended:
        signal.signal(signal.SIGINT, end_at_once)
    from minitrain.cli import main

    if attended:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def end_at_once(*_: object) -> None:
    """Ctrl-C during the imports. As an exception it would come out of NumPy's as another one."""
    print("minitrain: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def try_again(*_: object) -> None:
    """Told to stop while there is nothing to save: the code says that the job may be started again.

    It imports nothing, as it may have interrupted an import.
    """
    if launched(os.environ).rank == 0:
        os.write(2, b"minitrain: told to stop while no run was under way\n")
    os._exit(75)  # TryAgainError


for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported; several threads a rank fight for the cores
if sys.stderr is None:  # closed: else its descriptor goes to the next file, and `print` turns to stdout
    sys.stderr = open(os.devnull, "w")

sys.exit(start())
