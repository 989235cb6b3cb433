"""One AdamW step on a flat fp32 vector, minitrain's beside PyTorch's on the CPU: one process, one thread, by
turns. All must end at the same weights, or nothing is reported.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and PyTorch are imported

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from minitrain.arrays.heap import keep_freed_memory
from minitrain.optim.adamw import adamw
from minitrain.optim.apply import apply
from minitrain.optim.optimizer import Hyper

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
WARM_UP = 2

Step = Callable[[], None]


def ours(weights: np.ndarray, grad: np.ndarray) -> Step:
    """`grad` is used up: in training the next backward begins with zeros."""
    optimizer = adamw(BETAS, EPS)
    state, taken, everything = optimizer.init(weights), 0, slice(0, weights.size)

    def step() -> None:
        nonlocal taken
        taken += 1
        apply(optimizer, weights, grad, state, everything, Hyper(LR, DECAY, taken), grad_scale=1.0)

    return step


def theirs(weights: np.ndarray, grad: np.ndarray, fused: bool) -> Step:
    parameter = torch.nn.Parameter(torch.from_numpy(weights))  # the same memory
    parameter.grad = torch.from_numpy(grad)
    optimizer = torch.optim.AdamW(
        [parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=fused, foreach=False
    )
    return lambda: optimizer.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 24, help="elements (default: 2^24)")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each (default: 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    rng = np.random.default_rng(0)
    start, grad = (rng.standard_normal(arguments.size, np.float32) for _ in range(2))
    names = ("minitrain", "PyTorch, fused", "PyTorch, not fused")
    weights, own_grad = {name: start.copy() for name in names}, grad.copy()
    steps = {
        "minitrain": ours(weights["minitrain"], own_grad),
        "PyTorch, fused": theirs(weights["PyTorch, fused"], grad, fused=True),
        "PyTorch, not fused": theirs(weights["PyTorch, not fused"], grad, fused=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + arguments.rounds):
        own_grad[...] = grad
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    for name in names[1:]:
        error = float(np.abs(weights[name] - weights["minitrain"]).max())
        if not error < 1e-4:
            print(f"{name} and minitrain end at different weights: {error:.1e} apart", file=sys.stderr)
            return 1

    versions = f"NumPy {np.__version__}, PyTorch {torch.__version__}"
    print(f"AdamW, {arguments.size:,} fp32 elements, 1 thread, {versions}")
    print(f"{'':20}{'median ms':>10}{'min':>8}{'max':>8}   minitrain's time over it")
    median = {name: statistics.median(seconds[name]) for name in names}
    for name in names:
        low, high = min(seconds[name]), max(seconds[name])
        ratio = median["minitrain"] / median[name]
        print(f"{name:20}{1e3 * median[name]:10.1f}{1e3 * low:8.1f}{1e3 * high:8.1f}   {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
