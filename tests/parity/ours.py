"""Our side: stages with the weights of a Hugging Face directory, and training the user's way.

The user's way: a directory of weights, a token file, `python -m minitrain train`, and what it wrote.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from launch import run_minitrain
from layouts import tiny
from parity.reference import VOCAB, Recipe, random_model, torch

from minitrain.arrays.types import Array
from minitrain.checkpoint.hf_config import read_hf_model_config
from minitrain.checkpoint.weights import initial_values
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import Config
from minitrain.parallel.stage import Stage

LAYOUTS = {
    "serial": {},
    "dp2-tp2-pp2-zero1": dict(dp=2, tp=2, pp=2, zero=1),
}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
STD = 0.1  # of the initial weights


class Outcome(NamedTuple):
    losses: list[float]
    norms: list[float]
    eval_loss: float


def config_for(directory: Path, seq_len: int, **layout: object) -> Config:
    """Of the directory's model, on sequences of `seq_len`."""
    model, _ = read_hf_model_config(directory)
    config = tiny(replace(model, seq_len=seq_len), **layout)
    return replace(config, run=replace(config.run, init_from=str(directory)))


def logits(directory: Path, ids_BT: Array) -> Array:
    """logits_NV of the directory's model, in one process."""
    config = config_for(directory, ids_BT.shape[1])
    stage = Stage(config, make_grid(SingleComm(), config), initial_values(config))
    x_ND, _ = stage.forward(ids_BT.ravel())
    return stage.logits(x_ND)[0]


def some_tokens() -> Array:
    """uint16 [2000]: each is twice the one before and a little noise, so that there is something to learn."""
    rng = np.random.default_rng(0)
    tokens = np.zeros(2000, np.uint16)
    for i in range(1, len(tokens)):
        tokens[i] = (2 * tokens[i - 1] + rng.integers(4)) % VOCAB
    return tokens


def train(directory: Path, name: str, precision: str, recipe: Recipe, layout: dict[str, int]) -> Outcome:
    """Trains the random model `name` on threads. The trained weights are in `directory`/run/hf."""
    random_model(name, STD, DTYPES[precision]).save_pretrained(directory / "weights")
    write_bin(directory / "tokens.bin", some_tokens())
    arguments: dict[str, Any] = {
        "run.init_from": directory / "weights", "run.dir": directory / "run", "run.export_hf": "true",
        "data.path": directory / "tokens.bin", "data.shuffle": "false", "data.holdout": recipe.holdout,
        "model.seq_len": recipe.seq_len, "train.steps": recipe.steps, "train.micro_batch": 2,
        "train.global_batch": recipe.global_batch, "run.sample_tokens": 4,
        "precision": precision, "collectives": "threads", "parallel.dp": 1,
        "optim.name": "adamw", "optim.lr": recipe.lr, "optim.eps": recipe.eps, "optim.clip": recipe.clip,
        "optim.weight_decay": recipe.weight_decay, "optim.schedule": "cosine", "optim.warmup": recipe.warmup,
        "optim.min_lr": recipe.min_lr,
    }  # fmt: skip
    arguments |= {f"parallel.{axis}": n for axis, n in layout.items()}
    flags = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    finished = run_minitrain("train", *flags, "--optim.betas", *recipe.betas)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return Outcome([s["loss"] for s in steps], [s["grad_norm"] for s in steps], lines[-1]["eval_loss"])


def write_bin(path: Path, tokens: Array) -> None:
    """llm.c's token file."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
