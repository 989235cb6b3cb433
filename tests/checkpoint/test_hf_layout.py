import numpy as np
import pytest

from minitrain.checkpoint.hf_layout import Place, place, stored_shapes
from minitrain.config import ModelConfig
from minitrain.model.spec import model_specs

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
        view, index = where.select(
            written[where.tensor], spec.shape[0], tuple(slice(0, n) for n in spec.shape)
        )
        assert view[index].shape == spec.shape
        view[index] += 1
    assert all((count == 1).all() for count in written.values())


@pytest.mark.parametrize("case", MODELS)
def test_a_box_is_the_slice_of_the_whole(case: str) -> None:
    model, rng = MODELS[case], np.random.default_rng(0)
    stored = {name: rng.normal(size=shape) for name, shape in stored_shapes(model).items()}
    for spec in model_specs(model):
        where = place(spec, model)
        view, index = where.select(
            stored[where.tensor], spec.shape[0], tuple(slice(0, n) for n in spec.shape)
        )
        whole = view[index]
        boxes = [spec.tp_slice(rank, tp) for tp in (1, 2, 4) for rank in range(tp)]
        for _ in range(10):  # boxes that cut through heads too
            cuts = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in spec.shape]
            boxes.append(tuple(slice(a, b) for a, b in cuts))
        for box in boxes:
            view, index = where.select(stored[where.tensor], spec.shape[0], box)
            assert np.array_equal(view[index], whole[box])


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
        view, index = where.select(x.reshape(T, heads * K).T, heads * K, (slice(0, heads * K), slice(0, T)))
        return view[index].T.reshape(T, heads, K)

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
        view, index = place(spec, model).select(stored, 24, (slice(0, 24), slice(0, 24)))
        assert np.array_equal(view[index], stored[:, 24 * i : 24 * (i + 1)].T)
        view, index = place(specs[f"layers.0.attn.{name}.bias"], model).select(stored[0], 24, (slice(6, 12),))
        assert view[index].tolist() == list(range(24 * i + 6, 24 * i + 12))


def test_rows_of_q_and_k_alone_are_in_another_order() -> None:
    stored = np.arange(24)[:, None] * np.ones(24, int)
    for spec in model_specs(MODELS["llama"]):
        view, index = place(spec, MODELS["llama"]).select(stored, 6, (slice(0, 6), slice(0, 1)))
        permuted = spec.name.endswith(("attn.q", "attn.k"))
        if len(spec.shape) == 2:
            assert view[index].ravel().tolist() == ([0, 3, 1, 4, 2, 5] if permuted else list(range(6)))
