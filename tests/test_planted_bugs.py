"""Can the tests fail? For every bug planted here in a copy of the package, a named test fails.

A bug is an edit of one place: `old` stands exactly once in the file and becomes `new`. If the code is
rewritten so that `old` is gone, plant the bug anew: do not drop it.
"""

import re
import shutil
import subprocess
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


def exact(name: str) -> str:
    return f"tests/test_exact.py::test_everything_has_the_bits_of_one_process[fp64-adamw-{name}]"


BLOCK = "tests/model/test_gradients.py::test_block[llama]"

BUGS = [
    Bug(
        "the residual is dropped in the backward of the mlp",
        "model/block.py",
        '"mlp.norm", dresidual_SD=dz_SD)',
        '"mlp.norm")',
        BLOCK,
    ),
    Bug(
        "the rotation is not undone in the backward",
        "model/block.py",
        'c.ops.rope_backward(dx_BTHK, c.rope_TC)',
        'c.ops.rope_forward(dx_BTHK, c.rope_TC)',
        BLOCK,
    ),
    Bug(
        "the gradient of v does not reach the input",
        "model/block.py",
        'da_ND += _column_backward(dv_BTGK.reshape(rows, -1), a_ND, "attn.v", w, g, f8, c)',
        '_column_backward(dv_BTGK.reshape(rows, -1), a_ND, "attn.v", w, g, f8, c)',
        BLOCK,
    ),
    Bug(
        "the tied matrix gets no gradient from the embedding",
        "parallel/stage.py",
        'embedding.embed_backward(self.ops, dx_SD, ids_N, g["embedding"], self._first_id, self.tp)',
        'pass',
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
        "for comm in (grid.pp, grid.dp):\n        comm.all_reduce(losses)  #",
        "for comm in (grid.dp,):\n        comm.all_reduce(losses)  #",
        layout("llama-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "the loss is divided by the number of replicas twice",
        "step.py",
        "batch.targets_MN[m], trainer.judge.scale / batch.n_tokens",
        "batch.targets_MN[m], trainer.judge.scale / batch.n_tokens / trainer.grid.dp.size",
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
        'z_ND = c.ops.linear_forward(h_NF, w["mlp.down"], fp8',
        'z_ND = c.ops.linear_forward(h_NF, w["mlp.down"], w["mlp.down.bias"] * (1 - 1 / c.tp.comm.size), fp8',
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
        "in trainer.schedule(pp.rank, pp.size, len(batch.ids_MN)):",
        "in trainer.schedule(pp.rank, pp.size, len(batch.ids_MN) - 1):",
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
        '        unit.zero_grads()\n    return started\n',
        '    return started\n',
        "tests/parity/test_training.py",
    ),
    Bug(
        "biases and gains decay too",
        "parallel/update.py",
        "optim.weight_decay if decays else 0.0",
        "optim.weight_decay",
        "tests/parity/test_training.py",
    ),
    Bug(
        "the moments of Adam are not corrected for their start at zero",
        "optim/adamw.py",
        "rate = hyper.lr / (1 - b1**hyper.t)",
        "rate = hyper.lr",
        "tests/optim/test_optimizers.py::test_adamw_is_the_paper_s",
    ),
    Bug(
        "the norms of whole tensors are not summed over tp",
        "parallel/update.py",
        "self.grid.tp.all_reduce(array)",
        "pass",
        "tests/test_optimizers_in_layouts.py::test_every_optimizer_in_every_layout_equals_one_process"
        "[lamb-llama-dp2tp2pp1-zero0/1]",
    ),
    Bug(
        "a rank decides alone whether to skip a step",
        "step.py",
        'grid.world.all_reduce(verdict.rejected, "max")',
        'pass',
        "tests/test_overflow.py::test_replicas_whose_norms_differ_skip_together",
    ),
    Bug(
        "gradients are clipped before the loss scale is taken out",
        "optim/judge.py",
        'math.sqrt(square[0]) / self.scale',
        'math.sqrt(square[0])',
        "tests/test_precision_in_layouts.py::test_one_process_is_as_near_as_its_type_allows[fp16-llama]",
    ),
    Bug(
        "the loss scale stays in the update",
        "optim/judge.py",
        'clip_scale(verdict.norm, self._clip) / verdict.scale',
        'clip_scale(verdict.norm, self._clip)',
        "tests/test_precision_in_layouts.py::test_the_loss_scale_leaves_the_update_alone",
    ),
    Bug(
        "the parameters are not renewed from their master copies",
        "parallel/unit.py",
        "self.param_shard[...] = self.master",
        "pass",
        "tests/test_precision_in_layouts.py::test_parameters_are_their_master_copies_rounded",
    ),
    Bug(
        "a skipped step counts as an update",
        "optim/judge.py",
        'self.updates += accepted',
        'self.updates += 1',
        "tests/test_overflow.py::test_all_ranks_skip_the_same_step[zero0-one tp rank]",
    ),
    Bug(
        "columns of a tp rank are rounded as if they were the first",
        "parallel/unit.py",
        "column + self.box[1].start",
        "column",
        "tests/optim/test_stochastic.py::test_every_layout_rounds_alike_to_the_bit",
    ),
    Bug(
        "the Gauss-Newton estimate forgets the number of tokens",
        "curvature.py",
        "n_tokens * ghat * ghat",
        "ghat * ghat",
        "tests/test_curvature.py::test_gauss_newton_bartlett_squares_the_gradient_on_drawn_labels",
    ),
    Bug(
        "micro-batches are added one after the other under run.exact",
        "arrays/tree.py",
        "        while self._partial and self._partial[-1][0] == count:\n"
        "            _, sibling = self._partial.pop()\n"
        "            vector += sibling\n"
        "            self._pool.give_back(sibling)\n"
        "            count *= 2\n",
        "        for before, sum_before in self._partial:\n"
        "            vector += sum_before\n"
        "            count += before\n"
        "        self._partial.clear()\n",
        exact("llama-dp2tp1pp1-zero0/1-1f1b"),
    ),
    Bug(
        "ranks are added in the library's order under run.exact",
        "comm/grid.py",
        "return tree_ordered(along(name, name), device) if config.run.exact else along(name, name)",
        "return along(name, name)",
        exact("llama-dp4tp1pp1-zero1/4-1f1b"),
    ),
    Bug(
        "tp ranks are summed after the micro-batches under run.exact",
        "parallel/unit.py",
        "        self.sum_over_tp(full)\n"
        "        total = self._tree.add(full)\n"
        "        if total is not None:\n",
        "        total = self._tree.add(full)\n"
        "        if total is not None:\n"
        "            self.sum_over_tp(total)\n",
        exact("llama-dp2tp2pp1-zero0/1-1f1b-sequence"),
    ),
    Bug(
        "both uses of the tied matrix share a gradient under run.exact",
        "parallel/stage.py",
        "if self.output and exact and grid.pp.size == 1:",
        "if False:",
        exact("llama-tied-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "a rank rounds its part of the squared norm under run.exact",
        "parallel/sums.py",
        "digits(np.concatenate([unit.squares_of_blocks() for unit in units]))",
        "digits(np.concatenate([unit.squares_of_blocks() for unit in units]).sum(keepdims=True))",
        exact("llama-dp1tp1pp2-zero0/1-1f1b"),
    ),
    Bug(
        "a rank adds up the losses of its micro-batches under run.exact",
        "parallel/sums.py",
        "return self._dp.rank, micro",
        "return self._dp.rank, 0",
        exact("llama-dp2tp1pp1-zero0/1-1f1b"),
    ),
    Bug(
        "the statistics of a norm are rounded to 16 bits",
        "ops/norm.py",
        "    r_N, gain_D = _row_of(x_ND, len(x_ND)), wide(gain_D)\n",
        "    r_N, gain_D = np.zeros(len(x_ND), x_ND.dtype), wide(gain_D)\n",
        "tests/ops/test_narrow_storage.py::test_rounded_once",
    ),
    Bug(
        "types are not in the fingerprint of a collective",
        "comm/checked.py",
        'plan = f"{verb} of {whole.size} {whole.dtype.name}"',
        'plan = f"{verb} of {whole.size}"',
        "tests/comm/test_checked.py::test_all_ranks_are_told_of_a_difference[dtype]",
    ),
    Bug(
        "the reduction is not in the fingerprint of a collective",
        "comm/checked.py",
        'self._compare(f"all_reduce({op})", buffer)',
        'self._compare("all_reduce", buffer)',
        "tests/comm/test_checked.py::test_all_ranks_are_told_of_a_difference[reduction]",
    ),
    Bug(
        "the header of a message is read and believed",
        "comm/checked.py",
        "if not np.array_equal(header, expected):",
        "if False:",
        "tests/comm/test_checked.py::test_the_receiver_sees_a_message_of_another_kind[shape]",
    ),
    Bug(
        "only the last of some numbers is compared",
        "comm/agree.py",
        "same: Array = both[0] == ~both[1]",
        "same: Array = np.repeat((both[0] == ~both[1])[-1:], numbers.size)",
        "tests/test_replicas.py::test_one_flipped_bit_is_found[parameter]",
    ),
    Bug(
        "the majority is taken for the damaged ranks",
        "parallel/replicas.py",
        "most = groups[0][0]",
        "groups.reverse()\n    most = groups[-1][0]",
        "tests/test_replicas.py::test_one_flipped_bit_is_found[parameter]",
    ),
    Bug(
        "moments are not compared",
        "parallel/replicas.py",
        "if isinstance(optimizer, Elementwise):\n            for",
        "if False:\n            for",
        "tests/test_replicas.py::test_one_flipped_bit_is_found[moment]",
    ),
    Bug(
        "what every tp rank holds whole is not compared over tp",
        "parallel/replicas.py",
        "if copies > 1:",
        "if 1 < copies < grid.tp.size:",
        "tests/test_replicas.py::test_one_flipped_bit_is_found[gain that every tp rank holds]",
    ),
    Bug(
        "a rank that has come and gone is said to be missing",
        "watch/hang.py",
        "dump.begun.get(channel(call), 0) >= call.number",
        "dump.begun.get(channel(call), 0) == call.number",
        "tests/test_watchdog.py::test_a_rank_that_came_and_went_is_not_missing",
    ),
    Bug(
        "the time of one call counts for the next",
        "watch/watchdog.py",
        "if pending is not None and pending is self._seen",
        "if pending is not None",
        "tests/test_watchdog.py::test_time_counts_within_one_call_only",
    ),
    Bug(
        "ranks of different stages are compared in their pace",
        "watch/pace.py",
        "others[others[:, 1] == stage, 0]",
        "others[:, 0]",
        "tests/test_watchdog.py::test_only_ranks_of_one_stage_are_compared_and_only_a_large_difference_is_told",
    ),
    Bug(
        "what is unfinished counts as a checkpoint",
        "checkpoint/catalogue.py",
        '_NAME = re.compile(r"step-([0-9]{8,})")',
        '_NAME = re.compile(r"step-([0-9]{8,}).*")',
        "tests/test_hostile_checkpoints.py::test_files_that_do_not_belong_to_it",
    ),
    Bug(
        "other data of the same length go unnoticed",
        "checkpoint/resuming.py",
        "if seen == now:",
        "if seen.tokens == now.tokens:",
        "tests/test_hostile_checkpoints.py::test_data_that_have_changed",
    ),
    Bug(
        "good steps are not counted on from the checkpoint",
        "checkpoint/resuming.py",
        'scale=seen.scale, good_steps=seen.good_steps, tolerated',
        'scale=seen.scale, tolerated',
        "tests/test_faults.py::test_the_loss_scale_goes_on_where_it_was",
    ),
    Bug(
        "lines of the log that are written again stay",
        "observe/run_directory.py",
        "_step_of(line) <= step",
        "_step_of(line) <= step + 1",
        "tests/test_faults.py::test_numbers_that_are_not_finite",
    ),
    Bug(
        "a checkpoint is given up because an old one cannot be removed",
        "checkpoint/saving.py",
        "        self._complete = step\n",
        "",
        "tests/test_faults.py::test_a_checkpoint_that_is_complete_is_not_given_up",
    ),
    Bug(
        "zeros that no rank has written count as weights",
        "checkpoint/saving.py",
        "        self._require_all(int(written[0]), step)\n",
        "",
        "tests/test_resume.py::test_what_no_rank_writes_is_no_checkpoint",
    ),
    Bug(
        "one request that comes twice counts as two",
        "stop.py",
        "ONE_REQUEST = 1.0",
        "ONE_REQUEST = -1.0",
        "tests/test_faults.py::test_signals_end_a_run_between_two_steps",
    ),
    Bug(
        "the lock of a file that is gone counts",
        "observe/run_directory.py",
        "            if _is_at(path, file):\n                return file",
        "            return file",
        "tests/test_resume.py::test_a_lock_is_that_of_the_file_that_has_the_name",
    ),
    Bug(
        "files whose checksums differ are taken",
        "checkpoint/resuming.py",
        "        if chunk is not None:",
        "        if False:",
        "tests/fuzz/test_fuzz_checkpoints.py::test_checkpoints[0-99]",
    ),
    Bug(
        "the manifest may be a link to anywhere",
        "checkpoint/manifest.py",
        "LARGEST, follow=False",
        "LARGEST",
        "tests/fuzz/test_fuzz_checkpoints.py::test_every_entry[link_outside]",
    ),
    Bug(
        "a header may be as long as it says",
        "checkpoint/safetensors_file.py",
        "if length > LONGEST_HEADER:",
        "if False:",
        "tests/fuzz/test_fuzz_models.py::test_every_entry[claim_header]",
    ),
    Bug(
        "what a terminal obeys is sent to it",
        "errors.py",
        "c if c.isprintable() else",
        "c if True else",
        "tests/fuzz/test_fuzz_settings.py::test_settings[0-99]",
    ),
    Bug(
        "a token file may be longer than its header says",
        "data/tokens.py",
        "if count <= 0 or len(raw) != need:",
        "if count <= 0 or len(raw) < need:",
        "tests/fuzz/test_fuzz_data.py::test_data[0-69]",
    ),
    Bug(
        "the ring of a reduce-scatter makes a hop too few",
        "study/algorithms/ring_reduce_scatter.py",
        "for hop in range(n - 1):",
        "for hop in range(n - 2):",
        "tests/study/test_algorithms.py::test_reduce_scatter[ring-4-8]",
    ),
    Bug(
        "the ring of an all-gather passes on the own slice always",
        "study/algorithms/ring_all_gather.py",
        "sent = slices[(rank - hop) % n]",
        "sent = slices[rank]",
        "tests/study/test_algorithms.py::test_all_gather[ring-4-8]",
    ),
    Bug(
        "a doubling forgets what came before",
        "study/algorithms/halving_doubling.py",
        "first, slices = rank // n * n, ",
        "first, slices = rank // n, ",
        "tests/study/test_algorithms.py::test_all_gather[halving-4-8]",
    ),
    Bug(
        "those who have it grow by one in a hop of the tree",
        "study/algorithms/tree_broadcast.py",
        "have *= 2",
        "have += 1",
        "tests/study/test_algorithms.py::test_broadcast[tree-4]",
    ),
    Bug(
        "a rank keeps its own slice of an all-to-all for itself",
        "study/algorithms/all_to_all.py",
        "    target[slices[rank]] = source[slices[rank]]\n",
        "",
        "tests/study/test_algorithms.py::test_all_to_all[1-4]",
    ),
    Bug(
        "a page says what is not so",
        "study/page.py",
        "if not json.loads(ok)]",
        "if False]",
        "tests/study/test_lectures.py::test_a_check_that_fails_is_an_error_on_every_rank",
    ),
    Bug(
        "f does not add up in the lecture",
        "study/lectures/megatron_mlp.py",
        "tp.enter_backward(dx_ND.copy())",
        "dx_ND.copy()",
        "tests/study/test_lectures.py::test_a_lecture_holds[megatron-mlp-4]",
    ),
    Bug(
        "the bytes of ZeRO 3 are those of one micro-batch",
        "study/lectures/zero.py",
        "3 * n_micro)",
        "3)",
        "tests/study/test_lectures.py::test_a_lecture_holds[zero-4]",
    ),
    Bug(
        "what a block has saved stays until the next one has saved: every number is right",
        "parallel/stage.py",
        "del block_saved",
        "pass",
        "tests/study/test_lectures.py::test_a_lecture_holds[recomputation-2]",
    ),
    Bug(
        "in the lecture on layouts all data-parallel ranks see the same sequences",
        "study/lectures/combinations.py",
        "random_batch(config, grid.dp.rank)",
        "random_batch(config, 0)",
        "tests/study/test_lectures.py::test_a_lecture_holds[combinations-2]",
    ),
    Bug(
        "a backward counts as one product for each of the forward",
        "study/listening.py",
        "self.of_matrices += 4 * len(operands[0])",
        "self.of_matrices += 2 * len(operands[0])",
        "tests/study/test_lectures.py::test_a_lecture_holds[utilisation-2]",
    ),
    Bug(
        "ranks agree twice on what they have agreed on: every number is right",
        "step.py",
        'grid.world.all_reduce(verdict.rejected, "max")',
        'grid.world.all_reduce(verdict.rejected, "max"); grid.world.all_reduce(verdict.rejected, "max")',
        "tests/observe/test_traffic.py::test_traced_bytes_are_the_closed_form"
        "[llama-tied-3x2-dp2tp2pp2-zero1/2-1f1b-sequence-selective]",
    ),
    Bug(
        "a shard of ZeRO 3 is a view, and the whole vector stays: every number is right",
        "parallel/unit.py",
        "self.param_shard = None, full[own].copy()",
        "self.param_shard = None, full[own]",
        "tests/plan/test_memory.py::test_predicted_is_measured[llama-2x1-dp3tp1pp2-zero3/3-gpipe]",
    ),
    Bug(
        "a block is computed again from its output",
        "parallel/stage.py",
        "saved.append(block_saved if self._keeps_blocks else x)",
        "saved.append(block_saved if self._keeps_blocks else z_SD)",
        "tests/test_recompute.py::test_the_bits_are_those_of_a_run_that_keeps_all[full-fp32-llama-tied-exact-dp2tp1pp2-zero1/2-1f1b-sequence]",
    ),
    Bug(
        "what is to be computed again is kept too: every number is right",
        "parallel/stage.py",
        "saved.append(block_saved if self._keeps_blocks else x)",
        "saved.append(block_saved)",
        "tests/plan/test_memory.py::test_predicted_is_measured[llama-tied-2x2-dp4tp1pp2-zero3/4-gpipe-full]",
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
    result = pytest_in(tmp_path, bug.test)
    assert result.returncode == 1 and "1 failed" in result.stdout, f"nobody noticed:\n{result.stdout[-2000:]}"
    last_line = re.compile(r"^\S+:\d+: (AssertionError|DeadlockError)$", re.MULTILINE)
    assert last_line.search(result.stdout), f"an error, which no test has seen:\n{result.stdout[-2000:]}"


def test_without_a_bug_they_pass() -> None:
    """The others are in the suite, whose failure they would be."""
    result = pytest_in(REPOSITORY, "-m", "long", *sorted({bug.test for bug in BUGS}))
    assert result.returncode == 0, result.stdout[-2000:]


def pytest_in(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without hypothesis: importing it takes longer than most of these tests."""
    command = [sys.executable, "-m", "pytest", "-x", "--long", "-p", "no:hypothesispytest", *arguments]
    return run(command, cwd=directory, env={"PYTHONPATH": str(directory)})
