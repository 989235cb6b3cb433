"""One pipeline stage of the model: which units of memory it has, and the way of a micro-batch through them
and back.

Shapes: N = B*T rows of a micro-batch, S rows of it held outside the tensor-parallel region, D model width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import HOST, Device
from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.config import Config
from minitrain.model import embedding, head
from minitrain.model.block import BlockContext, BlockSaved, Scales, block_backward, block_forward
from minitrain.model.spec import block_specs, embedding_specs, head_specs, position_specs, stage_layers
from minitrain.model.tensor import TensorParallel
from minitrain.ops.rope import rope_table
from minitrain.ops.table import make_ops
from minitrain.optim.vectors import NOWHERE
from minitrain.parallel.sums import ExactSums, PlainSums, Sums
from minitrain.parallel.unit import Fill, Memory, Unit
from minitrain.precision import PRECISIONS

Views = dict[str, Array]


class StageSaved(NamedTuple):
    """What the backward of one micro-batch needs."""

    ids_N: Array | None  # the tokens, on the first stage
    blocks: list[BlockSaved | Array]  # or the input x_SD of a block whose forward is done again


class Stage:
    """The units of one pipeline stage. `units` lists them in the order of the forward pass."""

    def __init__(self, config: Config, grid: Grid, fill: Fill, align: int = 1, device: Device = HOST) -> None:
        """`align`: a multiple at which every tensor begins in its flat vector, if the optimizer wants it."""
        model, parallel, exact = config.model, config.parallel, config.run.exact
        self.model, self.precision = model, PRECISIONS[config.precision]
        self.is_first, self.is_last = grid.pp.rank == 0, grid.pp.rank == grid.pp.size - 1
        self.tp = TensorParallel(grid.tp, parallel.sequence and grid.tp.size > 1)
        leaves = n_micro_batches(config) if exact else None
        self.memory = Memory(device, grid, parallel.zero, self.tp.sequence, self.precision, align, leaves)
        head_width = model.width // model.heads
        self.ops = make_ops(device, config.attention, head_width, self.precision.activation)
        self.sums: Sums = ExactSums(device, grid.dp) if exact else PlainSums(device)
        layers = stage_layers(model.layers, grid.pp.rank, grid.pp.size)

        self.embedding: Unit | None = None
        self.positions: Unit | None = None
        self.head: Unit | None = None
        if self.is_first or (model.tied and self.is_last):  # of a tied matrix the first stage's copy counts
            self.embedding = Unit("", embedding_specs(model), self.memory, fill, counted=self.is_first)
        if self.is_first and model.arch == "gpt2":
            self.positions = Unit("", position_specs(model), self.memory, fill)
        self.blocks = [Unit(f"layers.{i}.", block_specs(model, i), self.memory, fill) for i in layers]
        if self.is_last:
            self.head = Unit("", head_specs(model), self.memory, fill)
        self.units = [u for u in (self.embedding, self.positions, *self.blocks, self.head) if u is not None]
        self.output = self.embedding if model.tied else None  # the unit whose matrix the head uses
        if self.output and exact and grid.pp.size == 1:  # its gradient is kept apart, as a pipeline keeps it
            self.output = Unit("", embedding_specs(model), self.memory, fill, counted=False)
            self.units.append(self.output)

        rounded = [self._rounded(unit) for unit in self.blocks]
        self.fp8 = self.ops.make_scales(sum(map(len, rounded)))
        maps = iter(self.fp8.maps)
        self.scales: list[Scales] = [{name: next(maps) for name in names} for names in rounded]
        rope_TC = None
        if model.arch == "llama":
            table_TC = rope_table(model.seq_len, head_width, model.rope_theta, self.precision.activation)
            rope_TC = device.to_device(table_TC)
        self._block_context = BlockContext(
            self.ops,
            self.tp,
            model.seq_len,
            head_width,
            model.norm_eps,
            rope_TC,
            keeps_scores=parallel.recompute != "selective",
        )
        self._keeps_blocks = parallel.recompute != "full"
        self._first_id = embedding_specs(model)[0].tp_slice(grid.tp.rank, grid.tp.size)[0].start
        self._head_context = head.HeadContext(self.ops, self.tp, self._first_id, model.norm_eps)

    def forward(self, x: Array) -> tuple[Array, StageSaved]:
        """x_SD of this stage's last block, from x_SD of the previous stage or, on the first, from ids_N."""
        ids_N = None
        if self.is_first:
            ids_N, x = x, self._embed(x, self.model.seq_len)
        saved: list[BlockSaved | Array] = []
        for unit, f8 in zip(self.blocks, self.scales, strict=True):
            with unit.params() as w:
                z_SD, block_saved = block_forward(x, w, f8, self._block_context)
            saved.append(block_saved if self._keeps_blocks else x)
            x = z_SD
            del block_saved  # what is not kept goes before the next block makes its own
        return x, StageSaved(ids_N, saved)

    def infer(self, x: Array, seq_len: int) -> Array:
        """The same for sequences of any length, with nothing kept for a backward."""
        context = self._block_context._replace(seq_len=seq_len)
        if self.is_first:
            x = self._embed(x, seq_len)
        for unit, f8 in zip(self.blocks, self.scales, strict=True):
            with unit.params() as w:
                x = block_forward(x, w, f8, context)[0]
        self.fp8.forget()  # training does not depend on what is looked at between steps
        return x

    def backward(self, dx_SD: Array, saved: StageSaved) -> Array:
        """The gradient for the previous stage, from that of the next one; parameter gradients are added up
        in the units. A block of which only the input was kept goes forward once more.
        """
        for unit, f8 in zip(reversed(self.blocks), reversed(self.scales), strict=True):
            with unit.params() as w:
                kept = saved.blocks.pop()
                if not isinstance(kept, BlockSaved):
                    kept = block_forward(kept, w, f8, self._block_context)[1]
                with unit.grads() as g:
                    dx_SD = block_backward(dx_SD, kept, w, g, f8, self._block_context)
                del kept  # before the next block makes its own
        if saved.ids_N is not None:
            self._embed_backward(dx_SD, saved.ids_N)
        return dx_SD

    def loss(
        self, x_SD: Array, targets_N: Array, scale: float | Array, drawn_N: Array | None = None
    ) -> tuple[Array, Array]:
        """Sum of nll over the micro-batch in nats, fp64 [], and dx_SD of `scale` times it.

        With `drawn_N`, uniform numbers, the targets are drawn from the prediction (`head.draw_targets`).
        """
        with self._head_and_matrix(lambda unit: unit.params()) as (w, matrix_VD):
            nll_N, saved = head.loss_forward(x_SD, targets_N, w, matrix_VD, self._head_context)
            if drawn_N is not None:
                saved = head.draw_targets(saved, drawn_N, self._head_context)
            with self._head_and_matrix(lambda unit: unit.grads()) as (g, dmatrix_VD):
                dx_SD = head.loss_backward(saved, scale, w, matrix_VD, g, dmatrix_VD, self._head_context)
        nll: Array = nll_N.sum(dtype=np.float64)
        return nll, dx_SD

    def loss_only(self, x_SD: Array, targets_N: Array) -> Array:
        """Sum of nll over the micro-batch, without a backward. fp64 []"""
        with self._head_and_matrix(lambda unit: unit.params()) as (w, matrix_VD):
            nll_N, _ = head.loss_forward(x_SD, targets_N, w, matrix_VD, self._head_context)
        nll: Array = nll_N.sum(dtype=np.float64)
        return nll

    def logits(self, x_SD: Array) -> tuple[Array, int]:
        """logits_NV of this rank's part of the vocabulary, and the first id of that part."""
        with self._head_and_matrix(lambda unit: unit.params()) as (w, matrix_VD):
            return head.logits_forward(x_SD, w, matrix_VD, self._head_context)[0], self._first_id

    def sum_tied(self) -> None:
        """The gradients of a tied matrix, where this rank alone keeps those of its two uses apart."""
        if self.embedding is not None and self.output not in (None, self.embedding):
            self.embedding.grad_shard += self.output.grad_shard
            self.output.grad_shard[...] = self.embedding.grad_shard

    def not_finite(self) -> Array:
        """Of each unit, the place of the first element of its gradient that is not finite in this step. A
        copy.
        """
        places: Array = self.memory.device.xp.concatenate([unit.not_finite for unit in self.units])
        return places

    def first_name(self, not_finite: Array) -> str:
        """The parameter at the first of these places; empty if there is none."""
        places = zip(self.units, not_finite.tolist(), strict=True)
        return next((unit.name_at(place) for unit, place in places if place != NOWHERE), "")

    def empty_activations(self, n_rows: int) -> Array:
        """A buffer for what a neighbouring stage sends for a micro-batch of `n_rows` tokens."""
        rows, width = self.tp.rows(n_rows), self.model.width
        x_SD: Array = self.memory.device.xp.empty((rows.stop - rows.start, width), self.precision.activation)
        return x_SD

    def _rounded(self, unit: Unit) -> list[str]:
        """The parameters that are rounded to 8 bits where they are multiplied."""
        if not self.precision.fp8:
            return []
        return [spec.name.removeprefix(unit.prefix) for spec in unit.specs if spec.group == "matrix"]

    def _embed(self, ids_N: Array, seq_len: int) -> Array:
        assert self.embedding is not None
        with self.embedding.params() as w:
            x_SD = embedding.embed_forward(self.ops, ids_N, w["embedding"], self._first_id, self.tp)
        if self.positions is not None:
            with self.positions.params() as w:
                n_rows, positions_TD = ids_N.size, w["positions"]
                x_SD = embedding.positions_forward(self.ops, x_SD, positions_TD, n_rows, seq_len, self.tp)
        return x_SD

    def _embed_backward(self, dx_SD: Array, ids_N: Array) -> None:
        assert self.embedding is not None
        if self.positions is not None:
            with self.positions.grads() as g:
                n_rows, T = ids_N.size, self.model.seq_len
                embedding.positions_backward(self.ops, dx_SD, g["positions"], n_rows, T, self.tp)
        with self.embedding.grads() as g:
            embedding.embed_backward(self.ops, dx_SD, ids_N, g["embedding"], self._first_id, self.tp)

    @contextmanager
    def _head_and_matrix(
        self, views_of: Callable[[Unit], AbstractContextManager[Views]]
    ) -> Iterator[tuple[Views, Array]]:
        """Parameters (or gradients) of the head, and of the output matrix: the embedding's when tied."""
        assert self.head is not None
        with views_of(self.head) as of_head:
            if "head" in of_head:
                yield of_head, of_head["head"]
                return
            assert self.output is not None
            with views_of(self.output) as of_output:
                yield of_head, of_output["embedding"]


def n_micro_batches(config: Config) -> int:
    """Of a rank in a step."""
    batch, dp = config.train.global_batch, config.parallel.dp
    assert batch and dp, "the configuration is resolved"
    return batch // (dp * config.train.micro_batch)
