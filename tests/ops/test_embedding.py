import numpy as np
import pytest
from oracle import check_directional

from minitrain.ops.embedding import embedding_backward, embedding_forward

V, D = 5, 3
IDS = np.array([4, 0, 8, 6, 4, 11, 4, 3, 8, 7, 2])  # with first_id 4: 4, 6, 7, 8 are here, 4 thrice, 5 never


def arrays(dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((V, D)).astype(dtype), rng.standard_normal((len(IDS), D)).astype(dtype)


def test_forward_gives_zero_rows_for_ids_of_other_ranks():
    w, _ = arrays()
    expected = [w[i - 4] if 4 <= i < 9 else np.zeros(D) for i in IDS]
    np.testing.assert_array_equal(embedding_forward(IDS, w, 4), expected)


def test_shares_of_all_ranks_add_up_to_the_whole():
    whole = np.random.default_rng(1).standard_normal((12, D))
    parts = [embedding_forward(IDS, whole[a:b], a) for a, b in [(0, 4), (4, 9), (9, 9), (9, 12)]]
    np.testing.assert_array_equal(sum(parts), whole[IDS])


@pytest.mark.parametrize("first_id", [0, 4, 7, 100])
def test_gradient(first_id):
    w, dy = arrays()
    dw = np.zeros_like(w)
    embedding_backward(dy, IDS, dw, first_id)
    expected = np.zeros_like(w)
    for row, i in zip(dy, IDS, strict=True):
        if 0 <= i - first_id < V:
            expected[i - first_id] += row
    np.testing.assert_allclose(dw, expected, rtol=1e-13)
    if first_id != 100:
        check_directional(lambda a: float(np.vdot(dy, embedding_forward(IDS, a[0], first_id))), [w], [dw])


def test_gradient_accumulates_is_repeatable_and_leaves_inputs_untouched():
    w, dy = arrays(np.float32)
    before = dy.copy()
    dw = [np.ones_like(w), np.ones_like(w), np.zeros_like(w)]
    for d in dw:
        embedding_backward(dy, IDS, d, 4)
    np.testing.assert_array_equal(dw[0], dw[1])
    np.testing.assert_allclose(dw[0], 1 + dw[2], rtol=1e-6)
    np.testing.assert_array_equal(dy, before)


@pytest.mark.parametrize("ids_dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_ids_of_any_integer_type_and_single_precision_stays_single(ids_dtype):
    w, dy = arrays(np.float32)
    ids = IDS.astype(ids_dtype)
    y = embedding_forward(ids, w, 4)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, embedding_forward(IDS, w, 4))
    dw, expected = np.zeros_like(w), np.zeros_like(w)
    embedding_backward(dy, ids, dw, 4)
    embedding_backward(dy, IDS, expected, 4)
    np.testing.assert_array_equal(dw, expected)
