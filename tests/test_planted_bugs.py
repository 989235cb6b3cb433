"""Can the tests fail? For every bug planted here in a copy of the package, a named test fails.

A bug is an edit of one place: `old` stands exactly once in the file and becomes `new`. If the code is
rewritten so that `old` is gone, plant the bug anew: do not drop it.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from launch import REPOSITORY, run


class Bug(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    test: str


def layout(name: str) -> str:
    return f"tests/test_equivalence.py::test_every_layout_equals_one_process[{name}]"


BLOCK = "tests/model/test_gradients.py::test_block[llama]"

BUGS = [
    Bug(
        "the residual is dropped in the backward of the mlp",
        "model/block.py",
        'saved.norm, w, g, "mlp.norm")\n    dx_SD += dy_SD\n',
        'saved.norm, w, g, "mlp.norm")\n',
        BLOCK,
    ),
    Bug(
        "the rotation is not undone in the backward",
        "model/block.py",
        "rope_backward(dq_BTHK, c.rope_TC)",
        "rope_forward(dq_BTHK, c.rope_TC)",
        BLOCK,
    ),
    Bug(
        "the gradient of v does not reach the input",
        "model/block.py",
        'da_ND += _column_backward(dv_BTGK.reshape(rows, -1), a_ND, "attn.v", w, g)',
        '_column_backward(dv_BTGK.reshape(rows, -1), a_ND, "attn.v", w, g)',
        BLOCK,
    ),
    Bug(
        "the tied matrix gets no gradient from the embedding",
        "parallel/stage.py",
        'embedding.embed_backward(dx_SD, ids_N, g["embedding"], self._first_id, self.tp)',
        "pass",
        "tests/model/test_gradients.py::test_whole_loss[llama-tied]",
    ),
    Bug(
        "the all-reduce over data-parallel replicas is left out",
        "step.py",
        "grid.replica.all_reduce(unit.grad_shard)",
        "pass",
        layout("llama-dp2tp1pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the reduce-scatter over the shard axis does not sum",
        "parallel/unit.py",
        "grid.shard.reduce_scatter(full, part)",
        "part[...] = full[grid.shard.rank * part.size :][: part.size]",
        layout("llama-dp2tp1pp1-zero1/2-1f1b"),
    ),
    Bug(
        "the all-gather of updated parameters is left out",
        "step.py",
        "grid.shard.all_gather(unit.param_shard, unit.param)",
        "pass",
        layout("llama-dp2tp1pp1-zero2/2-1f1b"),
    ),
    Bug(
        "ZeRO 2 keeps the gradient of the last micro-batch only",
        "parallel/unit.py",
        "self.grad_shard += part",
        "self.grad_shard[...] = part",
        layout("llama-dp2tp1pp1-zero2/2-1f1b"),
    ),
    Bug(
        "the tp all-reduce after row-parallel matrices is left out",
        "model/tensor.py",
        "return self._sum(y_ND)",
        "return y_ND",
        layout("llama-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the tp all-reduce of the backward of column-parallel matrices is left out",
        "model/tensor.py",
        "return self._sum(dx_ND)",
        "return dx_ND",
        layout("llama-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the largest logit is that of each rank alone",
        "model/head.py",
        'c.tp.comm.all_reduce(largest_N, "max")',
        "pass",
        layout("llama-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the loss stays on the last stage",
        "step.py",
        "for comm in (grid.pp, grid.dp):\n        comm.all_reduce(loss)  #",
        "for comm in (grid.dp,):\n        comm.all_reduce(loss)  #",
        layout("llama-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "the loss is divided by the number of replicas twice",
        "step.py",
        "batch.targets_MN[m], 1 / batch.n_tokens)",
        "batch.targets_MN[m], 1 / batch.n_tokens / trainer.grid.dp.size)",
        layout("llama-dp2tp1pp1-zero0/1-1f1b"),
    ),
    Bug(
        "weights that every tp rank holds count tp times in the norm",
        "parallel/unit.py",
        "(grid.tp.rank == 0, grid.kv.rank == 0, True)",
        "(True, grid.kv.rank == 0, True)",
        layout("llama-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "copies of kv heads count several times in the norm",
        "parallel/unit.py",
        "(grid.tp.rank == 0, grid.kv.rank == 0, True)",
        "(grid.tp.rank == 0, True, True)",
        layout("llama-dp1tp4pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the second copy of the tied matrix counts in the norm",
        "parallel/stage.py",
        "counted=self.is_first)",
        "counted=True)",
        layout("gpt2-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "gradients are clipped by the norm of each rank's own part",
        "step.py",
        "for comm in (grid.shard, grid.tp, grid.pp):",
        "for comm in ():",
        layout("llama-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "the gradient of the tied matrix is not summed over first and last stage",
        "step.py",
        "grid.tied.all_reduce(unit.grad_shard)",
        "pass",
        layout("gpt2-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "the gradients of copies of kv heads are not summed",
        "parallel/unit.py",
        "for run in self._kv_copies:",
        "for run in ():",
        layout("llama-dp1tp4pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the gradients of gains are not summed under sequence parallelism",
        "parallel/unit.py",
        "for run in self._whole:",
        "for run in ():",
        layout("llama-dp1tp2pp1-zero0/1-1f1b-sequence"),
    ),
    Bug(
        "the bias of a row-parallel matrix is added on every tp rank",
        "model/block.py",
        'w["mlp.down"]))  # row parallel: a partial sum over this rank\'s F\n    if "mlp.down.bias" in w:\n'
        '        y_SD += w["mlp.down.bias"]\n',
        'w["mlp.down"], w.get("mlp.down.bias")))\n',
        layout("gpt2-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "two tp shards of one matrix are swapped",
        "model/spec.py",
        "start = self.tp_units * rank // size\n",
        'rank = size - 1 - rank if self.name.endswith("mlp.up") else rank\n'
        "            start = self.tp_units * rank // size\n",
        layout("llama-dp1tp2pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the last micro-batch is dropped",
        "step.py",
        "len(batch.ids_MN))",
        "len(batch.ids_MN) - 1)",
        layout("llama-dp2tp1pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the first stage expects gradients in the wrong order",
        "parallel/schedule.py",
        "for micro in range(n_micro):\n        yield from backward(",
        "for micro in range(n_micro) if stage else reversed(range(n_micro)):\n        yield from backward(",
        "tests/parallel/test_schedule.py::test_runs_to_the_end_with_sends_that_wait[2-4-gpipe]",
    ),
    Bug(
        "gradients are not cleared after a step",
        "step.py",
        "unit.zero_grads()",
        "pass",
        "tests/parity/test_training.py",
    ),
    Bug(
        "biases and gains decay too",
        "parallel/unit.py",
        "decay=weight_decay if decays else 0.0",
        "decay=weight_decay",
        "tests/parity/test_training.py",
    ),
    Bug(
        "the moments of Adam are not corrected for their start at zero",
        "optim/adamw.py",
        "rate = lr / (1 - b1**step)",
        "rate = lr",
        "tests/optim/test_optimizers.py::test_adamw_is_the_paper_s",
    ),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_test_fails(bug: Bug, tmp_path: Path) -> None:
    if "parity" in bug.test:
        pytest.importorskip(
            "transformers", reason="the test that sees it needs PyTorch: scripts/test --parity"
        )
    for part in ("minitrain", "tests"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    file = tmp_path / "minitrain" / bug.file
    source = file.read_text()
    assert source.count(bug.old) == 1, f"{bug.file} has changed: plant the bug anew"
    file.write_text(source.replace(bug.old, bug.new))
    command = [sys.executable, "-m", "pytest", "-x", "--long", bug.test]
    result = run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1 and "1 failed" in result.stdout, f"nobody noticed:\n{result.stdout[-2000:]}"
    last_line = re.compile(r"^\S+:\d+: (AssertionError|DeadlockError)$", re.MULTILINE)
    assert last_line.search(result.stdout), f"an error, which no test has seen:\n{result.stdout[-2000:]}"
