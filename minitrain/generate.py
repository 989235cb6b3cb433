"""Text from a model, token by token, on the same grid of ranks that trains it.

The next token is drawn by the Gumbel-max trick (Gumbel 1954): argmax_v (l_v / temperature + gumbel_v) is
distributed as softmax(l / temperature). Each tp rank takes the maximum over its own part of the vocabulary,
so no rank needs all logits, and since the noise is a function of (seed, place, v) alone every layout writes
the same text.
"""

import os
from pathlib import Path

import numpy as np

from minitrain.arrays.device import on_host
from minitrain.arrays.types import Array
from minitrain.checkpoint.catalogue import checkpoints_in
from minitrain.checkpoint.hf_config import read_hf_model_config
from minitrain.checkpoint.hf_tokenizer import read_tokenizer
from minitrain.checkpoint.resuming import check_if_checkpoint
from minitrain.checkpoint.weights import EXPORT, initial_values
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import Config, ParallelConfig, RunConfig
from minitrain.data.philox import uniform
from minitrain.data.tokenizer import Tokenizer
from minitrain.errors import CheckpointError, NumericsError
from minitrain.observe.run_directory import CHECKPOINTS
from minitrain.parallel.stage import Stage


def generate_text(directory: str, prompt: str, n_tokens: int, temperature: float, seed: int) -> str:
    """`prompt` and its continuation by the model of a Hugging Face directory, checkpoint, or run; in fp32.

    Where the directory has no tokenizer, prompt and result are ids. Raises CheckpointError.
    """
    directory = _weights_of(directory)
    check_if_checkpoint(Path(directory), SingleComm())
    model, _ = read_hf_model_config(directory)
    config = Config(
        model=model, parallel=ParallelConfig(dp=1, tp=1, pp=1, shard=1), run=RunConfig(init_from=directory)
    )
    tokenizer = read_tokenizer(directory, model.vocab)
    ids = _encode(tokenizer, prompt, model.vocab)
    grid = make_grid(SingleComm(), config)
    stage = Stage(config, grid, initial_values(config))
    return tokenizer.decode(continue_tokens(stage, grid, ids, n_tokens, temperature, seed))


def _weights_of(directory: str) -> str:
    """Of a run directory: its newest checkpoint, or else the weights it ended with."""
    run = Path(directory)
    if os.path.exists(run / "config.json"):
        return directory
    if checkpoints := checkpoints_in(run / CHECKPOINTS):
        return str(checkpoints[-1])
    return str(run / EXPORT) if os.path.isdir(run / EXPORT) else directory


@np.errstate(all="ignore")  # what is not finite is reported once, by _draw
def continue_tokens(
    stage: Stage, grid: Grid, prompt: Array, n_tokens: int, temperature: float, seed: int
) -> Array:
    """`prompt` and `n_tokens` more ids. Every rank of a replica calls it and gets the same.

    Raises NumericsError if logits are not finite.
    """
    window = stage.model.seq_len  # the model knows no positions beyond
    ids = np.concatenate([prompt, np.zeros(n_tokens, prompt.dtype)])
    for place in range(prompt.size, ids.size):
        context = ids[max(0, place - window) : place]
        logits_V, first_id = _last_logits(stage, grid, context)
        ids[place] = _draw(stage, grid, logits_V, first_id, temperature, seed, place)
    return ids


def _encode(tokenizer: Tokenizer, prompt: str, vocab: int) -> Array:
    try:
        ids = tokenizer.encode(prompt).astype(np.int64)
    except ValueError:
        remedy = "give ids, as in --prompt '464 3290', or add its tokenizer.json"
        raise CheckpointError(
            "the model has no tokenizer, so the prompt must be ids", "--prompt", remedy
        ) from None
    if ids.size == 0 or ids.min() < 0 or ids.max() >= vocab:
        what = f"the prompt's ids are not one or more of 0 .. {vocab - 1}"
        raise CheckpointError(what, "--prompt", "give a prompt that the model knows")
    return ids


def _last_logits(stage: Stage, grid: Grid, context: Array) -> tuple[Array, int]:
    """On the last stage the logits after the last token, for this rank's part of the vocabulary. In the
    host's memory, where the next token is drawn.
    """
    pp = grid.pp
    # Sequence parallelism deals rows evenly, whatever the length of the text: a copy for each rank.
    ids_N = np.tile(context, grid.tp.size if stage.tp.sequence else 1)
    if stage.is_first:
        x = stage.memory.device.to_device(ids_N)
    else:
        x = stage.empty_activations(ids_N.size)
        pp.recv(x, pp.rank - 1)
    x = stage.infer(x, context.size)
    if not stage.is_last:
        pp.send(x, pp.rank + 1)
        return np.empty(0), 0
    if not stage.tp.sequence:
        x = x[-1:]  # every rank has every row, and one is enough
    logits_NV, first_id = stage.logits(x)
    last = on_host(logits_NV[-1])  # the last row is the last token, of the last copy if there are several
    return last, first_id


def _draw(
    stage: Stage, grid: Grid, logits_V: Array, first_id: int, temperature: float, seed: int, place: int
) -> int:
    vocab, chosen = stage.model.vocab, np.zeros(1, np.int64)
    if stage.is_last:
        score_V = logits_V.astype(np.float64)
        if temperature > 0:
            noise_V = uniform(seed, "sample", place * vocab + first_id, logits_V.size)
            score_V = score_V / temperature - np.log(-np.log(noise_V))
        own_best = score_V.max(initial=-np.inf)  # a rank may hold no part of a tiny vocabulary
        best = np.array([own_best])
        grid.tp.all_reduce(best, "max")
        chosen[0] = vocab - first_id - score_V.argmax() if score_V.size and own_best == best[0] else 0
        grid.tp.all_reduce(chosen, "max")  # counted from the end: of equals the first is taken, as by argmax
    grid.pp.broadcast(chosen, grid.pp.size - 1)
    if chosen[0] == 0:  # NaN is not equal to itself
        raise NumericsError(
            "no logit is a number", f"token {place} of the text", "give weights that are finite"
        )
    return vocab - int(chosen[0])
