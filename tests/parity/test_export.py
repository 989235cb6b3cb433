"""What a run exports is what it trained: transformers computes from it what the run computed, in fp64."""

from pathlib import Path
from typing import NamedTuple

import pytest
from parity import ours, reference
from parity.reference import MODELS, OnlyDouble, Recipe

RECIPE = Recipe(steps=3, warmup=1)
LAYOUTS = {"serial": {}, "dp2-tp2-pp2-zero3": dict(dp=2, tp=2, pp=2, zero=3)}
TOLERANCE = 1e-10


class Trained(NamedTuple):
    directory: Path  # of the exported weights
    eval_loss: float  # that the run computed at its end, from the weights in its memory


@pytest.fixture(
    scope="module", params=[(name, layout) for name in MODELS for layout in LAYOUTS], ids="-".join
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name, layout = request.param
    directory = tmp_path_factory.mktemp("export")
    outcome = ours.train(directory, name, "fp64", RECIPE, LAYOUTS[layout])
    return Trained(directory / "run" / "hf", outcome.eval_loss)


def test_held_out_loss_is_that_of_the_weights_in_memory(trained: Trained) -> None:
    _, held_out = reference.split(ours.some_tokens(), RECIPE)
    model = reference.load(trained.directory)
    with OnlyDouble():
        _, loss = reference.logits_and_loss(model, *reference.sequences(held_out, RECIPE.seq_len))
    assert abs(trained.eval_loss - loss.item()) <= TOLERANCE * loss.item()


def test_logits_are_the_same_on_both_sides(trained: Trained) -> None:
    _, held_out = reference.split(ours.some_tokens(), RECIPE)
    ids_BT, targets_BT = reference.sequences(held_out, RECIPE.seq_len)
    theirs_NV, _ = reference.logits_and_loss(reference.load(trained.directory), ids_BT, targets_BT)
    ours_NV = ours.logits(trained.directory, ids_BT)
    assert reference.worst_row_error(ours_NV, theirs_NV.detach().numpy()) <= TOLERANCE
