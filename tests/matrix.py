"""The layouts that closed forms are held to: every legal one of up to 8 ranks, and a sample of them in which
every pair of values of any two fields occurs.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from layouts import GPT2, LLAMA, LLAMA_TIED, tiny
from pairwise import pairwise

from minitrain.config import Config, LossScaleConfig, RunConfig
from minitrain.validate import validate

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
BATCHES = {  # micro-batches, sequences of each, precision, optimizer
    "2x1": (2, 1, "fp64", "adamw"),
    "3x2": (3, 2, "fp32", "lamb"),
    "1x2": (1, 2, "fp16", "adam8bit"),
    "2x2": (2, 2, "bf16", "adafactor"),
    "1x1": (1, 1, "bf16-pure", "muon"),
    "2x3": (2, 3, "fp8", "adamw"),
    "4x1 exact": (4, 1, "bf16", "adamw"),
    "1x1 exact": (1, 1, "fp32", "muon"),
}
RECOMPUTE = ("none", "selective", "full")


def configured(model: str, batch: str, **layout: Any) -> Config:
    n_micro, micro_batch, precision, name = BATCHES[batch]
    config = tiny(MODELS[model], **layout)
    sequences = layout.get("dp", 1) * n_micro * micro_batch
    train = replace(config.train, micro_batch=micro_batch, global_batch=sequences)
    optim = replace(config.optim, name=name)
    if name == "adafactor":
        optim = replace(optim, betas=None, eps=None)  # it has none
    return replace(
        config,
        train=train,
        precision=precision,
        optim=optim,
        loss_scale=LossScaleConfig(initial=1 if precision == "fp16" else 65536),  # these gradients are large
        run=RunConfig(exact="exact" in batch),
    )


def cases(batch: str) -> Iterator[dict[str, Any]]:
    """Every legal layout of up to 8 ranks, for every model."""
    for dp, tp, pp in itertools.product(range(1, 9), repeat=3):
        shards = [n for n in range(1, dp + 1) if dp % n == 0]
        zeros = [(0, 1), *itertools.product((1, 2, 3), shards)]
        if dp * tp * pp > 8:
            continue
        for model, (zero, shard), sequence in itertools.product(MODELS, zeros, (False, True)):
            case = dict(
                model=model, batch=batch, dp=dp, tp=tp, pp=pp, zero=zero, shard=shard, sequence=sequence
            )
            if not validate(configured(**case), dp * tp * pp, {"model.vocab"}):  # too small for bytes
                for schedule, recompute in itertools.product(("gpipe", "1f1b"), RECOMPUTE):
                    yield {**case, "schedule": schedule, "recompute": recompute}


SAMPLE = pairwise(itertools.chain.from_iterable(cases(batch) for batch in BATCHES))


def label(case: dict[str, Any]) -> str:
    form = "-sequence" * case["sequence"] + f"-{case['recompute']}" * (case["recompute"] != "none")
    return "{model}-{batch}-dp{dp}tp{tp}pp{pp}-zero{zero}/{shard}-{schedule}{0}".format(form, **case)
