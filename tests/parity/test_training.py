"""From the same weights on the same tokens, 30 steps of AdamW have PyTorch's losses and norms."""

from collections.abc import Callable
from functools import cache

import pytest
from parity import ours, reference
from parity.ours import LAYOUTS
from parity.reference import MODELS, Recipe

RECIPE = Recipe()
TOLERANCE = {"fp64": (1e-9, 1e-9), "fp32": (2e-6, 2e-5)}  # relative, of losses and of norms

Curves = tuple[list[float], list[float]]  # losses, norms


@pytest.fixture(scope="module")
def our_curves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Curves]:
    @cache
    def curves(name: str, layout: str, precision: str) -> Curves:
        directory = tmp_path_factory.mktemp("training")
        outcome = ours.train(directory, name, precision, RECIPE, LAYOUTS[layout])
        return outcome.losses, outcome.norms

    return curves


@cache
def their_curves(name: str, precision: str) -> Curves:
    model = reference.random_model(name, ours.STD, ours.DTYPES[precision])
    return reference.train(model, ours.some_tokens(), RECIPE)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_training_follows_pytorch(
    our_curves: Callable[[str, str, str], Curves], name: str, layout: str, precision: str
) -> None:
    loss_error, norm_error = errors = worst_errors(
        our_curves(name, layout, precision), their_curves(name, precision)
    )
    assert within(errors, precision), f"loss is off by {loss_error:.1e}, norm by {norm_error:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_shows_what_it_should(name: str) -> None:
    """The model learns, clipping is active on some steps and not on others, the data begin again."""
    losses, norms = their_curves(name, "fp64")
    assert len(losses) == 30 and losses[-1] < 0.95 * losses[0]
    assert min(norms) < RECIPE.clip < max(norms)
    training, held_out = reference.split(ours.some_tokens(), RECIPE)
    assert held_out.size and len(training) < RECIPE.steps * RECIPE.global_batch * RECIPE.seq_len


WRONG = {
    "weight decay on every tensor": dict(decays=lambda p: True),
    "weight decay on none": dict(decays=lambda p: False),
    "eps": dict(recipe=RECIPE._replace(eps=1e-7)),
    "beta2": dict(recipe=RECIPE._replace(betas=(0.9, 0.951))),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_another_training_is_told_apart(
    our_curves: Callable[[str, str, str], Curves], name: str, wrong: dict[str, object]
) -> None:
    """A comparison that these pass would show nothing."""
    model = reference.random_model(name, ours.STD, ours.DTYPES["fp64"])
    theirs = reference.train(model, ours.some_tokens(), **{"recipe": RECIPE, **wrong})
    errors = worst_errors(our_curves(name, "serial", "fp64"), theirs)
    assert not within(errors, "fp32"), "not even by the wider limits"


def worst_errors(a: Curves, b: Curves) -> tuple[float, float]:
    """Relative, of losses and of norms."""
    loss, norm = (
        max(abs(x - y) / abs(y) for x, y in zip(mine, other, strict=True))
        for mine, other in zip(a, b, strict=True)
    )
    return loss, norm


def within(errors: tuple[float, float], precision: str) -> bool:
    return all(error <= limit for error, limit in zip(errors, TOLERANCE[precision], strict=True))
