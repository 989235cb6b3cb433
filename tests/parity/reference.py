"""The same models and the same training in PyTorch and transformers: an oracle that shares no code with us.

Only names and layouts are translated by our own reader of Hugging Face directories. That it is right shows in
the logits.

Shapes: B sequences, T positions, N = B*T tokens, V vocabulary, K head width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minitrain.arrays.types import Array
from minitrain.checkpoint.hf_config import read_hf_model_config
from minitrain.checkpoint.huggingface import HFReader
from minitrain.model.spec import model_specs

torch = pytest.importorskip("torch", reason="the oracle is PyTorch: install the extra `parity`")
transformers = pytest.importorskip(
    "transformers", reason="the oracle is transformers: install the extra `parity`"
)

MAX_SEQ_LEN = 12  # of the models; the tests train on shorter sequences
VOCAB = 37  # over two ranks 18 and 19, and neither 23 nor 31 of the MLPs divides


def llama(kv_heads: int, tied: bool) -> "torch.nn.Module":
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=23, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=kv_heads, tie_word_embeddings=tied,
        max_position_embeddings=MAX_SEQ_LEN, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> "torch.nn.Module":
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_inner=31, n_layer=3, n_head=4, n_positions=MAX_SEQ_LEN,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class Recipe(NamedTuple):
    """A training run, said once for both sides; sequences in file order, the learning rate a cosine."""

    steps: int = 30
    global_batch: int = 8
    seq_len: int = 8
    holdout: float = 0.05
    lr: float = 1e-2
    min_lr: float = 1e-3
    warmup: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.25


MODELS: dict[str, Callable[[], "torch.nn.Module"]] = {
    "llama": partial(llama, kv_heads=2, tied=False),
    "llama-tied": partial(llama, kv_heads=1, tied=True),  # one kv head: both tp ranks hold it
    "gpt2": gpt2,
}


def random_model(name: str, std: float, dtype: "torch.dtype") -> "torch.nn.Module":
    """Weights and biases from N(0, std^2), gains from N(1, std^2); the same numbers in either type."""
    model, generator = MODELS[name]().to(dtype), torch.Generator().manual_seed(0)
    for parameter_name, p in model.named_parameters():
        gain = p.ndim == 1 and parameter_name.endswith("weight")
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * std + gain)
    return model if dtype == torch.float32 else in_double(model)


def load(directory: Path) -> "torch.nn.Module":
    """What transformers makes of a directory, in fp64. No weight may be missing, left over or misshapen."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, output_loading_info=True
    )
    assert not any(report.values()), report
    return in_double(model)


def in_double(model: "torch.nn.Module") -> "torch.nn.Module":
    """fp64 where transformers' Llama computes in fp32 whatever its type: RMSNorm and the rotary tables.

    (Its eager softmax as well; the attention that transformers takes by default is PyTorch's.) That nothing
    else is left in fp32 is asserted in each forward and backward by `OnlyDouble`.
    """
    modules = transformers.models.llama.modeling_llama
    for module in model.modules():
        if isinstance(module, modules.LlamaRMSNorm):
            module.forward = partial(_rms_norm, module)
        elif isinstance(module, modules.LlamaRotaryEmbedding):
            module.forward = partial(_rotary_tables, module)
    return model


def _rms_norm(module: "torch.nn.Module", x: "torch.Tensor") -> "torch.Tensor":
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight


def _rotary_tables(
    module: "torch.nn.Module", x: "torch.Tensor", position_ids: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """cos and sin of t theta^(-2j/K), for components j and j + K/2 alike."""
    K = module.config.head_dim
    frequency = module.config.rope_parameters["rope_theta"] ** (
        -torch.arange(0, K, 2, dtype=torch.float64) / K
    )
    angle = position_ids[..., None] * torch.cat([frequency, frequency])
    return angle.cos(), angle.sin()


class OnlyDouble(torch.utils._python_dispatch.TorchDispatchMode):
    """While active, an operation of PyTorch that makes a floating-point tensor of another type raises."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = operation(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                assert tensor.dtype == torch.float64, f"{operation} computes in {tensor.dtype}"
        return result


def logits_and_loss(
    model: "torch.nn.Module", ids_BT: Array, targets_BT: Array
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """logits_NV, and the mean nats per token."""
    logits_NV = model(input_ids=torch.from_numpy(ids_BT), use_cache=False).logits.flatten(0, 1)
    return logits_NV, torch.nn.functional.cross_entropy(logits_NV, torch.from_numpy(targets_BT).flatten())


def split(tokens: Array, recipe: Recipe) -> tuple[Array, Array]:
    """What is trained on, and what is held out: the tail."""
    n = len(tokens) - int(len(tokens) * recipe.holdout)
    return tokens[:n], tokens[n:]


def sequences(tokens: Array, seq_len: int) -> tuple[Array, Array]:
    """(ids, targets), [n, T]: sequence i is tokens [iT, iT + T], inputs and targets one apart."""
    T, tokens = seq_len, tokens.astype(np.int64)
    end = (len(tokens) - 1) // T * T
    return tokens[:end].reshape(-1, T), tokens[1 : end + 1].reshape(-1, T)


def batches(tokens: Array, recipe: Recipe) -> Iterator[tuple[Array, Array]]:
    """(ids_BT, targets_BT) of each step: step t takes sequences [(t-1)B, tB) modulo their number."""
    ids, targets = sequences(split(tokens, recipe)[0], recipe.seq_len)
    B = recipe.global_batch
    for t in range(1, recipe.steps + 1):
        i = np.arange((t - 1) * B, t * B) % len(ids)
        yield ids[i], targets[i]


def learning_rate(t: int, recipe: Recipe) -> float:
    """At step t from 1."""
    if t < recipe.warmup:
        return recipe.lr * t / recipe.warmup
    angle = math.pi * (t - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + math.cos(angle))


def decays(p: "torch.Tensor") -> bool:
    return p.ndim >= 2


def train(
    model: "torch.nn.Module", tokens: Array, recipe: Recipe, decays: Callable[["torch.Tensor"], bool] = decays
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms (before clipping) of all steps. The model is trained in place."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=recipe.betas, eps=recipe.eps)
    losses, norms = [], []
    for t, (ids_BT, targets_BT) in enumerate(batches(tokens, recipe), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(t, recipe)
        optimizer.zero_grad()
        _, loss = logits_and_loss(model, ids_BT, targets_BT)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms


def worst_row_error(ours_NV: Array, theirs_NV: Array) -> float:
    """Relative, of the logits of any token."""
    return float((np.linalg.norm(ours_NV - theirs_NV, axis=1) / np.linalg.norm(theirs_NV, axis=1)).max())


def read_named(directory: Path, seq_len: int) -> dict[str, Array]:
    """The tensors of a Hugging Face directory in our names and layout, with `seq_len` learned positions."""
    model, _ = read_hf_model_config(directory)
    reader = HFReader(directory, model)
    return {
        spec.name: reader.read(spec, tuple(slice(0, n) for n in spec.shape))
        for spec in model_specs(replace(model, seq_len=seq_len))
    }
