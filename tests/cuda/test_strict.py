"""What has no kernel and runs on CuPy's arrays: with arrays that refuse what CuPy refuses (strict.py)."""

import numpy as np
import pytest
from cuda import strict
from cuda.numbers import EPSILON, TYPES, random
from cuda.strict import WAITS, StrictArray

from minitrain.comm.single import SingleComm
from minitrain.model import head
from minitrain.model.embedding import _positions
from minitrain.model.tensor import TensorParallel
from minitrain.ops import attention, loss
from minitrain.ops.table import Ops

needs_cupy = pytest.mark.skipif(
    strict.cupy is None, reason="needs CuPy: pip install 'minitrain[cupy]'"
)  # to ask what it has


def device(*arrays: np.ndarray) -> list[StrictArray]:
    return [StrictArray(x.copy()) for x in arrays]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("B, T, H, G, K", [(2, 5, 4, 4, 6), (1, 70, 6, 2, 8), (3, 130, 2, 1, 16)])
def test_attention(B: int, T: int, H: int, G: int, K: int, dtype: np.dtype) -> None:
    """As on the host, but for the order of some sums."""
    q, k, v, do = inputs = [random(str(i), (B, T, n, K), dtype) for i, n in enumerate((H, G, G, H))]
    o, saved = attention.attention_forward(*device(q, k, v))
    results = [o, *attention.attention_backward(*device(do), saved)]
    o_host, saved_host = attention.attention_forward(q, k, v)
    expected = [o_host, *attention.attention_backward(do, saved_host)]
    for found, right in zip(results, expected, strict=True):
        assert found.dtype == dtype and found.flags.c_contiguous
        error = np.abs(found.get().astype(np.float64) - right.astype(np.float64))
        assert error.max() <= 8 * EPSILON[dtype.name][0] * np.abs(right.astype(np.float64)).max()
    assert all(x.dtype == dtype for x in (*saved.exps, *inputs))


def test_targets_are_drawn_as_on_the_host() -> None:
    exp, drawn = np.abs(random("exp", (50, 7), TYPES["fp32"])), np.linspace(0.01, 0.99, 50)
    targets = np.arange(50) % 7
    targets[::10] = -1
    c = head.HeadContext(Ops(), TensorParallel(SingleComm(), False), 0, 1e-5)

    def drawn_from(exp, targets, drawn):
        return head.draw_targets(head.HeadSaved(None, None, targets, exp, None), drawn, c).targets_N

    expected = drawn_from(exp.copy(), targets, drawn)
    assert len(set(expected.tolist())) == 8
    np.testing.assert_array_equal(drawn_from(*device(exp, targets, drawn)).get(), expected)
    before, limit = np.full(50, 0.5, np.float32), 3 * drawn
    np.testing.assert_array_equal(
        loss.draw(*device(exp, before, limit), 4).get(), loss.draw(exp, before, limit, 4)
    )


def test_positions() -> None:
    (x,) = device(np.zeros((6, 2), np.float32))
    positions = _positions(x, 6, 4, TensorParallel(SingleComm(), False))
    assert isinstance(positions, StrictArray) and positions.get().tolist() == [0, 1, 2, 3, 0, 1]


@needs_cupy
def test_what_cupy_has_not_is_refused() -> None:
    x, y = device(np.ones((2, 3)), np.ones((2, 3)))
    for call in (
        lambda: np.vecdot(x, y),
        lambda: np.add.reduce(x),
        lambda: np.multiply(x, 2.0, order="C"),
        lambda: x.max(initial=0),
        lambda: np.sum(x, initial=0),
        lambda: np.ascontiguousarray(x),
    ):
        with pytest.raises(TypeError, match="CuPy would refuse this"):
            call()


def test_the_host_s_arrays_do_not_mix_with_a_gpu_s() -> None:
    (x,), host = device(np.ones(3)), np.ones(3)
    for call in (
        lambda: x + host,
        lambda: host + x,
        lambda: np.where(x > 0, x, host),
        lambda: x[host > 0],
        lambda: x.__setitem__(slice(0, 2), host[:2]),
        lambda: np.asarray(x),
        lambda: np.add(host, host, out=x),
        lambda: np.add(x, x, out=host),
        lambda: host.__iadd__(x),
    ):
        with pytest.raises(TypeError):
            call()
    x += 1
    x[:1] = 5
    assert x.get().tolist() == [5, 2, 2]


def test_looks_are_counted() -> None:
    x = StrictArray(np.array(1.0))
    WAITS.n = 0
    looks = float, int, bool, StrictArray.item, StrictArray.tolist, StrictArray.get
    for n, look in enumerate(looks, 1):
        look(x)
        assert WAITS.n == n
    assert (x > 0).dtype == bool and WAITS.n == n


def test_views_know_whose_memory_they_are_in() -> None:
    (x,) = device(np.zeros((4, 3)))
    view = x[1:].reshape(-1)[2:4]
    view += 1
    assert view.base is x and x.base is None and x.get().sum() == 2
    assert x.copy().base is None and (x + 1).base is None
