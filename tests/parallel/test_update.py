"""Parameter groups: which rate and which decay each tensor gets."""

from dataclasses import replace

import numpy as np
import pytest
from layouts import GPT2, LLAMA, accepted, mild_weights, tiny

from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import ModelConfig, OptimConfig

LR, DECAY = 0.1, 0.5
RATES = {"matrix": 1.0, "vector": 2.0, "embedding": 3.0, "head": 4.0}


@pytest.mark.parametrize("decay_vectors", [False, True])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_every_group_has_its_rate_and_its_decay(model: ModelConfig, decay_vectors: bool) -> None:
    optim = OptimConfig(
        name="sgd", weight_decay=DECAY, decay_vectors=decay_vectors,
        lr_vectors=RATES["vector"], lr_embeddings=RATES["embedding"], lr_head=RATES["head"],
    )  # fmt: skip
    config = replace(tiny(model), optim=optim)
    trainer = make_trainer(config, make_grid(SingleComm(), config), mild_weights)
    seen = set()
    for unit in trainer.stage.units:
        before = unit.master.copy()
        unit.grad_shard.fill(1.0)
        trainer.updater.update(unit, LR, accepted(0.25))
        for held in unit.held:
            group = held.spec.group
            seen.add(group)
            rate = LR * RATES[group]
            decay = DECAY if decay_vectors or group != "vector" else 0.0
            expected = before[held.where] * (1 - rate * decay) - rate * 0.25
            np.testing.assert_allclose(unit.master[held.where], expected, rtol=1e-12, err_msg=held.spec.name)
    assert seen == ({*RATES} if model is LLAMA else {*RATES} - {"head"}), "a tied matrix is an embedding"
