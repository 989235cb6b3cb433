"""Where each of our parameters lies in a Hugging Face directory: its name there, its rows and columns.

Three differences, all of them settled here and used for reading and writing alike:

- GPT-2's linear maps (`Conv1D`) are stored [in, out], ours are [out, in].
- GPT-2 keeps q, k and v in one tensor `c_attn`, side by side along its outputs.
- Llama's rotary embedding rotates component j of a head with j + K/2, ours 2j with 2j + 1 (neighbours: a
  rotation is then one complex multiplication). So the rows of q and k are in another order inside each head.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.config import ModelConfig
from minitrain.model.spec import ParamSpec, model_specs

NAMES = {
    "llama": {
        "embedding": "model.embed_tokens",
        "head.norm": "model.norm",
        "head": "lm_head",
        "attn.norm": "model.layers.{}.input_layernorm",
        "attn.q": "model.layers.{}.self_attn.q_proj",
        "attn.k": "model.layers.{}.self_attn.k_proj",
        "attn.v": "model.layers.{}.self_attn.v_proj",
        "attn.o": "model.layers.{}.self_attn.o_proj",
        "mlp.norm": "model.layers.{}.post_attention_layernorm",
        "mlp.gate": "model.layers.{}.mlp.gate_proj",
        "mlp.up": "model.layers.{}.mlp.up_proj",
        "mlp.down": "model.layers.{}.mlp.down_proj",
    },
    "gpt2": {
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "head.norm": "transformer.ln_f",
        "head": "lm_head",
        "attn.norm": "transformer.h.{}.ln_1",
        "attn.q": "transformer.h.{}.attn.c_attn",
        "attn.k": "transformer.h.{}.attn.c_attn",
        "attn.v": "transformer.h.{}.attn.c_attn",
        "attn.o": "transformer.h.{}.attn.c_proj",
        "mlp.norm": "transformer.h.{}.ln_2",
        "mlp.up": "transformer.h.{}.mlp.c_fc",
        "mlp.down": "transformer.h.{}.mlp.c_proj",
    },
}


class Place(NamedTuple):
    """One of our parameters inside a stored tensor.

    tensor      name of the stored tensor
    shape       its shape, as stored
    transposed  stored [in, out]
    first       our row 0 is this row of the stored tensor (a column, if transposed)
    head_width  K if the rows of each head are paired (j, j + K/2) there, else 0
    """

    tensor: str
    shape: tuple[int, ...]
    transposed: bool = False
    first: int = 0
    head_width: int = 0

    def locate(self, n_rows: int, box: tuple[slice, ...]) -> "Located":
        """The rows and columns of the stored tensor that our `box` is. We have `n_rows`."""
        start, stop, _ = box[0].indices(n_rows)
        own = slice(self.first + start, self.first + stop)
        if self.transposed:
            return Located(np.arange(box[1].start, box[1].stop), own, transposed=True)
        columns = box[1] if len(box) == 2 else slice(0, 1)
        if not self.head_width:
            return Located(np.arange(own.start, own.stop), columns)
        pairs = np.arange(n_rows).reshape(-1, 2, self.head_width // 2)  # [head, half, pair] -> stored row
        return Located(pairs.swapaxes(1, 2).ravel()[start:stop], columns)


class Located(NamedTuple):
    """A box of ours in a stored tensor, seen as rows and columns there; `transposed` if ours are the other
    way round.
    """

    rows: Array
    columns: slice
    transposed: bool = False


def place(spec: ParamSpec, model: ModelConfig) -> Place:
    """Where `spec` lies."""
    assert model.kv_heads is not None
    name, kind = spec.name.removesuffix(".bias"), "bias" if spec.name.endswith(".bias") else "weight"
    layer = ""
    if name.startswith("layers."):
        _, layer, name = name.split(".", 2)
    tensor = f"{NAMES[model.arch][name].format(layer)}.{kind}"
    K = model.width // model.heads
    if model.arch == "llama":
        return Place(tensor, spec.shape, head_width=K if name in ("attn.q", "attn.k") else 0)
    outputs, first = spec.shape[0], 0
    if name in ("attn.q", "attn.k", "attn.v"):
        outputs = (model.heads + 2 * model.kv_heads) * K
        first = {"attn.q": 0, "attn.k": model.heads, "attn.v": model.heads + model.kv_heads}[name] * K
    if layer and len(spec.shape) == 2:
        return Place(tensor, (spec.shape[1], outputs), transposed=True, first=first)
    return Place(tensor, (outputs, *spec.shape[1:]), first=first)


def stored_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a directory with its shape, in forward order."""
    return {where.tensor: where.shape for where in (place(spec, model) for spec in model_specs(model))}
