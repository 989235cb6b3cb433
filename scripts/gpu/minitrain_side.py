"""minitrain's side: a trainer as `python -m minitrain train` makes it, on one GPU."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from contender import Result
from problems import LEARNING_RATE, OPTIM, Problem, make_batches, make_weights

from minitrain.arrays.device import Gpu
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import Config, ParallelConfig, TrainConfig
from minitrain.step import Batch, StartedStep, start_step


class Ours:
    """Reads what came of a step when the next one is under way, as the training loop does."""

    def __init__(
        self,
        gpu: Gpu,
        problem: Problem,
        settings: Mapping[str, Any],
        pool_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """`settings`: fields of Config that are not its defaults."""
        config = make_config(problem, settings)
        weights = make_weights(problem.model)
        grid = make_grid(SingleComm(), config)
        self.trainer = make_trainer(config, grid, lambda spec, box: weights(spec.name)[box], gpu)
        self._gpu, self.pool_bytes = gpu, pool_bytes
        self._data = [
            Batch(gpu.to_device(ids_MN), gpu.to_device(targets_MN), ids_MN.size)
            for ids_MN, targets_MN in make_batches(problem)
        ]
        self._under_way: deque[StartedStep] = deque()
        self._results: list[Result] = []

    def start(self, number: int) -> None:
        batch = self._data[number % len(self._data)]
        self._under_way.append(start_step(self.trainer, batch, LEARNING_RATE, number))
        self._read(left=1)

    def finish(self) -> list[Result]:
        self._read(left=0)
        self._gpu.synchronize()
        results, self._results = self._results, []
        return results

    def attention(self) -> str:
        """Which one this is: the module that has it."""
        forward = self.trainer.stage.ops.attention_forward
        return str(getattr(forward, "func", forward).__module__)

    def _read(self, left: int) -> None:
        while len(self._under_way) > left:
            result = self._under_way.popleft().result()
            self._results.append(Result(result.loss, result.grad_norm))


def make_config(problem: Problem, settings: Mapping[str, Any]) -> Config:
    """One rank with all of it."""
    config = Config(
        model=problem.model,
        parallel=ParallelConfig(dp=1, tp=1, pp=1, shard=1),
        train=TrainConfig(
            global_batch=problem.micro_batches * problem.micro_batch, micro_batch=problem.micro_batch
        ),
        optim=OPTIM,
    )
    return replace(config, **settings)
