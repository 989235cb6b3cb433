"""The table of parameters: for each its logical name, global shape, how tensor parallelism cuts it, and how
it starts.

Every other part of the package reads this table: the flat memory (who holds what), the initial weights, the
reading and writing of weights. One row of it is enough to know a parameter's whole life.
"""

import math
from typing import Literal, NamedTuple

from minitrain.config import ModelConfig


class ParamSpec(NamedTuple):
    """One parameter.

    `tp_dim` is the dimension that tensor parallelism cuts (None: every tp rank holds the whole), and
    `tp_units` the number of indivisible pieces along it: heads for attention, rows for everything else.
    `init_std` is the standard deviation of the initial values; None means ones (gains), 0 means zeros.
    """

    name: str
    shape: tuple[int, ...]
    tp_dim: int | None
    tp_units: int
    init_std: float | None

    @property
    def group(self) -> Literal["matrix", "vector", "embedding", "head"]:
        """What optimizers treat alike: gains and biases are vectors; a tied matrix is an embedding."""
        if len(self.shape) < 2:
            return "vector"
        if self.name == "head":
            return "head"
        return "embedding" if self.name in ("embedding", "positions") else "matrix"

    @property
    def decays(self) -> bool:
        """Weight decay acts on matrices and embeddings, on gains and biases only if asked for."""
        return self.group != "vector"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def tp_slice(self, rank: int, size: int) -> tuple[slice, ...]:
        """The part of the global tensor that tp rank `rank` of `size` holds.

        Pieces are dealt as evenly as whole pieces allow, without padding. When there are fewer heads than
        ranks (kv heads below tp) several ranks hold the same head; when there are fewer rows than ranks
        (a tiny vocabulary) some ranks hold none.
        """
        box = [slice(0, n) for n in self.shape]
        if self.tp_dim is not None:
            length = self.shape[self.tp_dim] // self.tp_units
            start = self.tp_units * rank // size
            stop = max(start + (self.tp_replicas(size) > 1), self.tp_units * (rank + 1) // size)
            box[self.tp_dim] = slice(start * length, stop * length)
        return tuple(box)

    def tp_replicas(self, size: int) -> int:
        """How many tp ranks hold the same piece: `size` if uncut, 1 if cut, tp / kv_heads for replicated kv
        heads.
        """
        if self.tp_dim is None:
            return size
        single_rows = self.tp_units == self.shape[self.tp_dim]
        return 1 if single_rows else max(1, size // self.tp_units)


INIT_STD = 0.02  # GPT-2 (Radford et al. 2019) and Llama alike


def block_specs(model: ModelConfig, layer: int) -> list[ParamSpec]:
    """The parameters of block `layer`. Column-parallel matrices are cut along their outputs, row-parallel
    ones along their inputs.

    Output projections start at zero, so that every block starts as the identity and the first gradients
    reach all layers alike (Zhang et al. 2019, Fixup).
    """
    assert model.kv_heads is not None and model.ffn is not None
    D, F, H, G = model.width, model.ffn, model.heads, model.kv_heads
    K = D // H
    gpt2 = model.arch == "gpt2"
    rows: list[ParamSpec] = []

    def norm(name: str) -> None:
        rows.append(ParamSpec(f"layers.{layer}.{name}", (D,), None, 1, None))
        if gpt2:
            rows.append(ParamSpec(f"layers.{layer}.{name}.bias", (D,), None, 1, 0.0))

    def column(name: str, outputs: int, pieces: int) -> None:
        rows.append(ParamSpec(f"layers.{layer}.{name}", (outputs, D), 0, pieces, INIT_STD))
        if gpt2:
            rows.append(ParamSpec(f"layers.{layer}.{name}.bias", (outputs,), 0, pieces, 0.0))

    def row(name: str, inputs: int, pieces: int) -> None:
        rows.append(ParamSpec(f"layers.{layer}.{name}", (D, inputs), 1, pieces, 0.0))
        if gpt2:
            rows.append(ParamSpec(f"layers.{layer}.{name}.bias", (D,), None, 1, 0.0))

    norm("attn.norm")
    column("attn.q", H * K, H)
    column("attn.k", G * K, G)
    column("attn.v", G * K, G)
    row("attn.o", H * K, H)
    norm("mlp.norm")
    if not gpt2:
        column("mlp.gate", F, F)
    column("mlp.up", F, F)
    row("mlp.down", F, F)
    return rows


def embedding_specs(model: ModelConfig) -> list[ParamSpec]:
    """The embedding matrix, vocabulary-parallel. When tied it is also the head's matrix."""
    return [ParamSpec("embedding", (model.vocab, model.width), 0, model.vocab, INIT_STD)]


def position_specs(model: ModelConfig) -> list[ParamSpec]:
    """GPT-2's learned positions."""
    return [ParamSpec("positions", (model.seq_len, model.width), None, 1, INIT_STD)]


def head_specs(model: ModelConfig) -> list[ParamSpec]:
    """The final norm and, unless tied, the vocabulary-parallel output matrix."""
    rows = [ParamSpec("head.norm", (model.width,), None, 1, None)]
    if model.arch == "gpt2":
        rows.append(ParamSpec("head.norm.bias", (model.width,), None, 1, 0.0))
    if not model.tied:
        rows.append(ParamSpec("head", (model.vocab, model.width), 0, model.vocab, INIT_STD))
    return rows


def model_specs(model: ModelConfig) -> list[ParamSpec]:
    """Every parameter once, in forward order."""
    rows = embedding_specs(model)
    if model.arch == "gpt2":
        rows += position_specs(model)
    for layer in range(model.layers):
        rows += block_specs(model, layer)
    return rows + head_specs(model)


def stage_layers(layers: int, stage: int, n_stages: int) -> range:
    """The blocks of pipeline stage `stage`: a contiguous run; the first `layers % n_stages` stages hold one
    more.
    """
    each, more = divmod(layers, n_stages)
    start = stage * each + min(stage, more)
    return range(start, start + each + (stage < more))
