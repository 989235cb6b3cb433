"""PyTorch's side: the same models as one would write them to be fast on a GPU, eager or by torch.compile.

One matrix for q, k and v, the library's own attention, norms and fused AdamW, autocast to bf16. Gradients,
moments and weights are fp32, as ours are beside the bf16 copy that multiplies.

Shapes: B sequences, T positions, D width, H query heads, G kv heads, K head width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contender import Result
from problems import LEARNING_RATE, OPTIM, Problem, make_batches, make_weights
from torch import Tensor, nn
from torch.nn import functional

from minitrain.config import ModelConfig


def make_norm(model: ModelConfig) -> nn.Module:
    norm = nn.LayerNorm if model.arch == "gpt2" else nn.RMSNorm
    return norm(model.width, eps=model.norm_eps)


def make_linear(model: ModelConfig, inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=model.arch == "gpt2")


class Attention(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        assert model.kv_heads
        D, self.K = model.width, model.width // model.heads
        self.sizes = [model.heads * self.K, model.kv_heads * self.K, model.kv_heads * self.K]
        self.shared = model.kv_heads != model.heads
        self.norm = make_norm(model)
        self.qkv = make_linear(model, D, sum(self.sizes))
        self.o = make_linear(model, D, D)

    def forward(self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        qkv = self.qkv(self.norm(x_BTD)).split(self.sizes, dim=-1)
        q, k, v = [x.unflatten(-1, (-1, self.K)).transpose(1, 2) for x in qkv]
        if cos_sin is not None:
            q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        o_BHTK = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.shared)
        return self.o(o_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        assert model.ffn
        self.norm = make_norm(model)
        self.gate = make_linear(model, model.width, model.ffn) if model.arch == "llama" else None
        self.up = make_linear(model, model.width, model.ffn)
        self.down = make_linear(model, model.ffn, model.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        a_BTD = self.norm(x_BTD)
        if self.gate is None:
            return self.down(functional.gelu(self.up(a_BTD), approximate="tanh"))
        return self.down(functional.silu(self.gate(a_BTD)) * self.up(a_BTD))


class Block(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(model), MLP(model)

    def forward(self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        x_BTD = x_BTD + self.attn(x_BTD, cos_sin)
        return x_BTD + self.mlp(x_BTD)


class Transformer(nn.Module):
    """A GPT-2 or a Llama."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab, model.width)
        self.positions = nn.Embedding(model.seq_len, model.width) if model.arch == "gpt2" else None
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.norm = make_norm(model)
        self.head = nn.Linear(model.width, model.vocab, bias=False)
        if model.tied:
            self.head.weight = self.embedding.weight
        if model.arch == "llama":
            for name, table_TC in zip(("cos_TC", "sin_TC"), rotary_table(model), strict=True):
                self.register_buffer(name, table_TC)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss, in nats per token."""
        x_BTD, cos_sin = self.embedding(ids_BT), None
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight
        else:
            cos_sin = self.cos_TC, self.sin_TC
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_sin)
        logits_BTV = self.head(self.norm(x_BTD))
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def rotary_table(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of t theta^(-2j/K) for position t and pair j of components."""
    K = model.width // model.heads
    frequency = model.rope_theta ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    angle_TC = torch.outer(torch.arange(model.seq_len, dtype=torch.float64), frequency)
    return angle_TC.cos().float(), angle_TC.sin().float()


def rotate(x_BHTK: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Pairs are component j and j + K/2, which are next to each other in our own models (`halves`)."""
    cos_TC, sin_TC = cos_TC.to(x_BHTK.dtype), sin_TC.to(x_BHTK.dtype)
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat((a * cos_TC - b * sin_TC, b * cos_TC + a * sin_TC), dim=-1)


class Theirs:
    def __init__(self, problem: Problem, *, compiled: bool, device: str = "cuda", bf16: bool = True) -> None:
        self._device, self._bf16 = device, bf16
        model = problem.model
        with torch.device(device):
            transformer = Transformer(model)
        load(transformer, model)
        self._parameters = list(transformer.parameters())
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": OPTIM.weight_decay},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=LEARNING_RATE, betas=OPTIM.betas, eps=OPTIM.eps, fused=True
        )
        self._forward: Any = torch.compile(transformer, dynamic=False) if compiled else transformer
        shape = (problem.micro_batches, problem.micro_batch, model.seq_len)
        self._data = [
            tuple(torch.from_numpy(x.reshape(shape)).to(device) for x in batch)
            for batch in make_batches(problem)
        ]
        self._under_way: list[tuple[Tensor, Tensor]] = []

    def start(self, number: int) -> None:
        ids_MBT, targets_MBT = self._data[number % len(self._data)]
        total = torch.zeros((), device=self._device)
        for ids_BT, targets_BT in zip(ids_MBT, targets_MBT, strict=True):
            with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                loss = self._forward(ids_BT, targets_BT) / len(ids_MBT)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, OPTIM.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._under_way.append((total, norm))

    def finish(self) -> list[Result]:
        if self._device == "cuda":
            torch.cuda.synchronize()
        results = [Result(loss.item(), norm.item()) for loss, norm in self._under_way]
        self._under_way.clear()
        return results

    def pool_bytes(self) -> int:
        return torch.cuda.max_memory_reserved() if self._device == "cuda" else 0


def load(transformer: Transformer, model: ModelConfig) -> None:
    """The weights of the problem, by our names for them."""
    weights = make_weights(model)
    put(transformer.embedding.weight, weights("embedding"))
    if transformer.positions is not None:
        put(transformer.positions.weight, weights("positions"))
    if not model.tied:
        put(transformer.head.weight, weights("head"))
    put_both(transformer.norm, lambda end: weights(f"head.norm{end}"))
    for i, block in enumerate(transformer.blocks):
        for part in (block.attn, block.mlp):
            prefix = f"layers.{i}.{'attn' if part is block.attn else 'mlp'}"
            for name, module in part.named_children():
                if name == "qkv":
                    put_both(module, lambda end, at=prefix: qkv(weights, model, at, end))
                else:
                    put_both(module, lambda end, at=f"{prefix}.{name}": weights(at + end))


def qkv(weights: Callable[[str], np.ndarray], model: ModelConfig, prefix: str, end: str) -> np.ndarray:
    """One matrix, or bias, from three."""
    q, k, v = [weights(f"{prefix}.{name}{end}") for name in "qkv"]
    if model.arch == "llama":
        q, k = halves(q, model), halves(k, model)
    return np.concatenate([q, k, v])


def put_both(module: nn.Module, values: Callable[[str], np.ndarray]) -> None:
    """Weight, and bias if there is one; `values` takes the end of our name."""
    put(module.weight, values(""))
    if getattr(module, "bias", None) is not None:
        put(module.bias, values(".bias"))


def put(parameter: Tensor, values: np.ndarray) -> None:
    assert parameter.shape == values.shape, (parameter.shape, values.shape)
    parameter.data.copy_(torch.from_numpy(values))


def halves(w_OD: np.ndarray, model: ModelConfig) -> np.ndarray:
    """The rows of each head in another order: first those of even components, then the odd ones. Scores do
    not depend on the order of components, as long as it is the same in q and k.
    """
    K, D = model.width // model.heads, model.width
    return np.ascontiguousarray(w_OD.reshape(-1, K // 2, 2, D).swapaxes(1, 2)).reshape(w_OD.shape)
