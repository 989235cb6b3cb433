"""PyTorch's side: the same Llama, eager, as one would write it to be fast on a CPU.

Of several ways to write a part this has the fastest: fused AdamW, the library's own attention and RMSNorm,
rotation as a complex multiplication. Fused matrices (q with k and v, gate with up) were no faster.

Shapes: B sequences, T positions, D width, H heads, K head width, V vocabulary.
"""

import os
from collections.abc import Callable

import torch
from problem import LEARNING_RATE, OPTIM, PROBLEMS, batches, weights
from torch import Tensor, nn
from torch.nn import functional

from minitrain.arrays.heap import keep_freed_memory
from minitrain.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.width, eps=model.norm_eps)


class Attention(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        D, self.K = model.width, model.width // model.heads
        self.norm = RMSNorm(model)
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x_BTD: Tensor, rotation_TC: Tensor) -> Tensor:
        a_BTD = self.norm(x_BTD)
        q, k, v = (matrix(a_BTD).unflatten(-1, (-1, self.K)) for matrix in (self.q, self.k, self.v))
        q, k = rotate(q, rotation_TC), rotate(k, rotation_TC)
        q, k, v = (x_BTHK.transpose(1, 2) for x_BTHK in (q, k, v))
        o_BHTK = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(o_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        assert model.ffn is not None
        self.norm = RMSNorm(model)
        self.gate, self.up = (nn.Linear(model.width, model.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(model.ffn, model.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        a_BTD = self.norm(x_BTD)
        return self.down(functional.silu(self.gate(a_BTD)) * self.up(a_BTD))


class Llama(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab, model.width)
        self.attentions = nn.ModuleList(Attention(model) for _ in range(model.layers))
        self.mlps = nn.ModuleList(MLP(model) for _ in range(model.layers))
        self.norm = RMSNorm(model)
        self.head = nn.Linear(model.width, model.vocab, bias=False)
        self.register_buffer("rotation_TC", rotations(model))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss, in nats per token."""
        x_BTD = self.embedding(ids_BT)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x_BTD = x_BTD + attention(x_BTD, self.rotation_TC)
            x_BTD = x_BTD + mlp(x_BTD)
        logits_BTV = self.head(self.norm(x_BTD))
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def rotations(model: ModelConfig) -> Tensor:
    """e^(i t theta^(-2j/K)) for position t and pair j of components."""
    K = model.width // model.heads
    frequency = model.rope_theta ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    angle_TC = torch.outer(torch.arange(model.seq_len, dtype=torch.float64), frequency)
    return torch.polar(torch.ones_like(angle_TC), angle_TC).to(torch.complex64)


def rotate(x_BTHK: Tensor, rotation_TC: Tensor) -> Tensor:
    z_BTHC = torch.view_as_complex(x_BTHK.unflatten(-1, (-1, 2)))
    return torch.view_as_real(z_BTHC * rotation_TC[:, None]).flatten(-2)


def make_step(name: str) -> Callable[[int], float]:
    """A function of the step's number, from 1, that trains and returns the loss."""
    keep_freed_memory()  # PyTorch by itself does not; a few percent of its step
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = PROBLEMS[name].model
    llama = Llama(model)
    load(llama, model)
    parameters = list(llama.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": OPTIM.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=OPTIM.betas, eps=OPTIM.eps, fused=True)
    data = [(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT)) for ids_BT, targets_BT in batches(model)]

    def step(number: int) -> float:
        loss = llama(*data[number % len(data)])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, OPTIM.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def load(llama: Llama, model: ModelConfig) -> None:
    """The weights of the problem, by our names for them."""
    own = {"embedding": llama.embedding.weight, "head.norm": llama.norm.weight, "head": llama.head.weight}
    for i in range(model.layers):
        for part, module in (("attn", llama.attentions[i]), ("mlp", llama.mlps[i])):
            for name, p in module.named_parameters():  # q.weight
                own[f"layers.{i}.{part}.{name.removesuffix('.weight')}"] = p
    values = weights(model)
    assert own.keys() == values.keys()
    for name, p in own.items():
        p.data.copy_(torch.from_numpy(values[name]))
