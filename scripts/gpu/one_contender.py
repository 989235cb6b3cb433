"""One contender with one model, as a process of its own, so that no allocator and no library is shared.

    python one_contender.py TASK FILE

TASK is a `Task` as JSON. What came of it is written to FILE: {"status": "done", ...}, or that it ran out of
memory. Any other error ends the process; what was found before it stays in the file.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clock import CudaClock
from contender import Contender, Plan, measure
from problems import PROBLEMS, Problem

CEILING_SIZE = 8192
Report = Callable[[dict[str, Any]], None]


class Task(NamedTuple):
    who: str  # minitrain, eager, compiled; ceiling
    model: str
    micro_batch: int
    micro_batches: int
    plan: Plan
    breakdown: bool
    gemm: str
    settings: dict[str, Any]  # of Config, of minitrain

    @classmethod
    def read(cls, text: str) -> "Task":
        task = cls(**json.loads(text))
        return task._replace(plan=Plan(*task.plan))

    def write(self) -> str:
        return json.dumps(self._asdict())


def make_gpu(gemm: str) -> Any:
    """The first GPU, with the products of cuBLASLt or of cuBLAS."""
    from minitrain.arrays.cupy_device import CupyDevice
    from minitrain.ops.cuda.cublaslt import CublasLt
    from minitrain.ops.cuda.gemm_ex import GemmEx

    gpu = CupyDevice(0)
    gpu.gemm = {"cublaslt": CublasLt, "gemmex": GemmEx}[gemm].of_cupy()
    return gpu


def ceiling(task: Task, report: Report) -> None:
    """FLOP/s of a large product by our own `gemm`, of random numbers."""
    from speed import product_flops

    gpu = make_gpu(task.gemm)
    report({"flops": product_flops(gpu, CEILING_SIZE, task.plan.rounds)} | card_of_cupy())


def card_of_cupy() -> dict[str, Any]:
    from minitrain.arrays.cupy_device import describe

    return {"card": describe(0)[0]}


def minitrain(task: Task, report: Report) -> None:
    import cupy
    from minitrain_side import Ours
    from recording import RecordingGpu
    from speed import break_down

    gpu = RecordingGpu(make_gpu(task.gemm), CudaClock())
    pool = cupy.get_default_memory_pool()
    free = cupy.cuda.runtime.memGetInfo()[0]
    ours = Ours(gpu, problem(task), task.settings, pool.total_bytes)
    found = measure(ours, task.plan) | card_of_cupy()
    found["card_bytes"] = free - cupy.cuda.runtime.memGetInfo()[0]
    found["attention"] = ours.attention()
    report(found)
    if task.breakdown:
        rows = break_down(ours, gpu, found["launch"])
        report(found | {"breakdown": [row._asdict() for row in rows]})


def pytorch(task: Task, report: Report) -> None:
    import torch
    from pytorch_side import Theirs

    torch.set_float32_matmul_precision("high")
    free = torch.cuda.mem_get_info()[0]
    contender: Contender = Theirs(problem(task), compiled=task.who == "compiled")
    found = measure(contender, task.plan)
    found["card_bytes"] = free - torch.cuda.mem_get_info()[0]
    report(found | {"card": torch.cuda.get_device_name()})


def problem(task: Task) -> Problem:
    return PROBLEMS[task.model]._replace(micro_batch=task.micro_batch, micro_batches=task.micro_batches)


CONTENDERS = {"ceiling": ceiling, "minitrain": minitrain, "eager": pytorch, "compiled": pytorch}


def is_out_of_memory(error: Exception) -> bool:
    """CuPy's, PyTorch's, that of CUDA, of cuBLAS and of cuDNN."""
    text = f"{type(error).__name__} {error}".lower()
    return any(
        words in text for words in ("outofmemory", "out of memory", "memoryallocation", "alloc_failed")
    )


def main(task: str, file: str) -> None:
    path, read = Path(file), Task.read(task)

    def report(found: dict[str, Any]) -> None:
        path.write_text(json.dumps({"status": "done"} | found))

    try:
        CONTENDERS[read.who](read, report)
    except Exception as error:
        if path.exists() or not is_out_of_memory(error):
            raise
        message = (str(error).splitlines() or [""])[0]
        path.write_text(json.dumps({"status": "out of memory", "message": message}))


if __name__ == "__main__":
    main(*sys.argv[1:])
