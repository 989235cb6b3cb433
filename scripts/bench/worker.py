"""One side of the comparison, as a process of its own: sleeps until its turn, and times its steps.

    python worker.py {ours,pytorch} PROBLEM SOCKET

Through the socket come numbers of steps; what came of them goes back, a line of JSON for each.
"""

import importlib
import json
import socket
import sys
import time
from pathlib import Path


def peak_memory() -> int | None:
    """Bytes of physical memory that this process held at most (Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(side: str, problem: str, address: str) -> None:
    module = importlib.import_module(side)  # never both
    imports = peak_memory()
    step = module.make_step(problem)
    number = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as parent:
            for line in parent:
                seconds, losses = [], []
                for _ in range(int(line)):
                    number += 1
                    start = time.perf_counter()
                    losses.append(step(number))
                    seconds.append(time.perf_counter() - start)
                report = {"seconds": seconds, "losses": losses, "imports": imports, "peak": peak_memory()}
                print(json.dumps(report), file=parent, flush=True)


main(*sys.argv[1:])
