import numpy as np
import pytest

from minitrain.checkpoint.hf_layout import Located, Place, place, stored_shapes
from minitrain.config import ModelConfig
from minitrain.model.spec import model_specs


def part(stored: np.ndarray, located: Located) -> np.ndarray:
    """A view or copy of that part of a stored tensor, in our orientation."""
    matrix = stored.reshape(len(stored), -1)
    chosen = matrix[located.rows, located.columns]
    return chosen.T if located.transposed else chosen


MODELS = {
    "llama": ModelConfig("llama", 2, 24, 4, 2, 40, 33, 16, False),
    "llama tied": ModelConfig("llama", 1, 24, 4, 4, 40, 33, 16, True),
    "gpt2": ModelConfig("gpt2", 2, 24, 4, 4, 40, 33, 16, True),
    "gpt2 untied": ModelConfig("gpt2", 1, 24, 4, 4, 40, 33, 16, False),
}


@pytest.mark.parametrize("case", MODELS)
def test_every_stored_element_belongs_to_exactly_one_parameter(case: str) -> None:
    model = MODELS[case]
    written = {name: np.zeros(shape, int) for name, shape in stored_shapes(model).items()}
    for spec in model_specs(model):
        where = place(spec, model)
        rows, columns, _ = located = where.locate(spec.shape[0], tuple(slice(0, n) for n in spec.shape))
        stored = written[where.tensor]
        assert part(stored, located).reshape(spec.shape).shape == spec.shape
        stored.reshape(len(stored), -1)[rows, columns] += 1
    assert all((count == 1).all() for count in written.values())


@pytest.mark.parametrize("case", MODELS)
def test_a_box_is_the_slice_of_the_whole(case: str) -> None:
    model, rng = MODELS[case], np.random.default_rng(0)
    stored = {name: rng.normal(size=shape) for name, shape in stored_shapes(model).items()}
    for spec in model_specs(model):
        where = place(spec, model)
        everything = where.locate(spec.shape[0], tuple(slice(0, n) for n in spec.shape))
        whole = part(stored[where.tensor], everything).reshape(spec.shape)
        boxes = [spec.tp_slice(rank, tp) for tp in (1, 2, 4) for rank in range(tp)]
        for _ in range(10):  # boxes that cut through heads too
            cuts = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in spec.shape]
            boxes.append(tuple(slice(a, b) for a, b in cuts))
        for box in boxes:
            found = part(stored[where.tensor], where.locate(spec.shape[0], box))
            assert np.array_equal(found.reshape(whole[box].shape), whole[box])


def test_rotation_of_pairs_is_the_same_on_both_sides() -> None:
    """Rotating halves of the rows as stored, then reading ours, is rotating neighbours as complex numbers."""
    heads, K, T = 3, 8, 5
    rng = np.random.default_rng(0)
    angles = np.outer(np.arange(T), 10000.0 ** (-np.arange(K // 2) / (K // 2)))  # [T, K / 2]
    theirs = rng.normal(size=(T, heads, K))

    first, second = theirs[..., : K // 2], theirs[..., K // 2 :]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def ours(x: np.ndarray) -> np.ndarray:  # [T, heads, K] in our order of rows
        where = Place("q", (heads * K,), head_width=K)
        located = where.locate(heads * K, (slice(0, heads * K), slice(0, T)))
        return part(x.reshape(T, heads * K).T, located).T.reshape(T, heads, K)

    pairs = np.ascontiguousarray(ours(theirs)).view(
        complex
    )  # neighbours as one complex number [T, heads, K / 2]
    expected = np.ascontiguousarray(ours(rotated)).view(complex)
    np.testing.assert_allclose(pairs * np.exp(1j * angles)[:, None], expected, rtol=1e-14)


def test_names_and_shapes_of_llama() -> None:
    shapes = stored_shapes(MODELS["llama"])
    assert len(shapes) == 1 + 2 * 9 + 2
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (33, 24)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (12, 24)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (24, 40)
    assert "lm_head.weight" not in stored_shapes(MODELS["llama tied"])


def test_names_and_shapes_of_gpt2() -> None:
    shapes = stored_shapes(MODELS["gpt2"])
    assert len(shapes) == 2 + 2 * 12 + 2
    assert shapes["transformer.h.1.attn.c_attn.weight"] == (24, 72)
    assert shapes["transformer.h.1.attn.c_attn.bias"] == (72,)
    assert shapes["transformer.h.1.mlp.c_proj.weight"] == (40, 24)
    assert shapes["transformer.wpe.weight"] == (16, 24)


def test_c_attn_is_q_k_v_along_its_columns() -> None:
    model = MODELS["gpt2"]
    stored = np.arange(24 * 72).reshape(24, 72)
    specs = {spec.name: spec for spec in model_specs(model)}
    for i, name in enumerate(("q", "k", "v")):
        spec = specs[f"layers.0.attn.{name}"]
        found = part(stored, place(spec, model).locate(24, (slice(0, 24), slice(0, 24))))
        assert np.array_equal(found, stored[:, 24 * i : 24 * (i + 1)].T)
        bias = place(specs[f"layers.0.attn.{name}.bias"], model).locate(24, (slice(6, 12),))
        assert part(stored[0], bias).ravel().tolist() == list(range(24 * i + 6, 24 * i + 12))


def test_rows_of_q_and_k_alone_are_in_another_order() -> None:
    stored = np.arange(24)[:, None] * np.ones(24, int)
    for spec in model_specs(MODELS["llama"]):
        found = part(stored, place(spec, MODELS["llama"]).locate(6, (slice(0, 6), slice(0, 1))))
        permuted = spec.name.endswith(("attn.q", "attn.k"))
        if len(spec.shape) == 2:
            assert found.ravel().tolist() == ([0, 3, 1, 4, 2, 5] if permuted else list(range(6)))
