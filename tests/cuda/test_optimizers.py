"""Kernels of optimizers against the reference (optim/apply.py), to the bit.

They do the same operations in the same order, each of which rounds alike here: g++ is told to contract no
product and sum to one operation, which a GPU does, and so comes to other last bits.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from cuda.numbers import random

from minitrain.arrays.device import Gpu
from minitrain.arrays.threads import blocks
from minitrain.model.spec import ParamSpec
from minitrain.optim.adagrad import adagrad
from minitrain.optim.adam8bit import adam8bit
from minitrain.optim.adamw import adamw
from minitrain.optim.apply import absorb, apply, to_nearest
from minitrain.optim.cuda import elementwise
from minitrain.optim.cuda.chance import NEAREST, chance
from minitrain.optim.cuda.elementwise import Range, Updates, together
from minitrain.optim.lion import lion
from minitrain.optim.momentum import momentum, nesterov
from minitrain.optim.optimizer import Elementwise, Hyper, State
from minitrain.optim.quantised import MIDPOINTS, Quantised
from minitrain.optim.radam import radam
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sage import sage
from minitrain.optim.sgd import sgd
from minitrain.optim.sophia import sophia
from minitrain.optim.stochastic import stochastic_rounding
from minitrain.parallel.unit import Held
from minitrain.precision import PRECISIONS, Precision

B, EPS = (0.9, 0.95), 1e-3
OPTIMIZERS: dict[str, Elementwise] = {
    "sgd": sgd(),
    "momentum": momentum(0.9, classical=False),
    "classical": momentum(0.9, classical=True),
    "nesterov": nesterov(0.9, classical=False),
    "adagrad": adagrad(EPS),
    "rmsprop": rmsprop(0.95, EPS),
    "adamw": adamw(B, EPS),
    "radam": radam(B, EPS),
    "adam8bit": adam8bit(B, EPS),
    "sage": sage(B, 0.75, EPS),
    "sophia": sophia(B, EPS, 0.04, "gauss-newton-bartlett"),
    "lion": lion(B),
}
TABLE = [PRECISIONS[name] for name in ("fp64", "fp32", "fp16", "bf16", "bf16-pure")]
by_precision = pytest.mark.parametrize("types", TABLE, ids=["fp64", "fp32", "fp16", "bf16", "bf16-pure"])
by_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@dataclass
class Vectors:
    """What is updated: twice the same, for the reference and for the kernel."""

    param: np.ndarray
    copy: np.ndarray | None
    state: State

    @staticmethod
    def of(optimizer: Elementwise, types: Precision, n: int) -> "Vectors":
        param = random("w", (n,), types.master)
        copy = None if types.param == types.master else np.zeros(n, types.param)
        state = optimizer.init(param)
        if "h" in state:  # of which an update makes nothing
            state["h"] = random("h", (n,), types.master)
        return Vectors(param, copy, state)

    def all(self) -> list[np.ndarray]:
        arrays = [self.param] if self.copy is None else [self.param, self.copy]
        for vector in self.state.values():
            arrays += [vector.codes, vector.largest] if isinstance(vector, Quantised) else [vector]
        return arrays

    def bytes(self) -> list[bytes]:
        return [array.tobytes() for array in self.all()]


def verdict(factor: float, updates: int, accepted: bool = True) -> np.ndarray:
    return np.array([np.nan, np.nan, factor, accepted, updates, np.nan, np.nan])


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    for array, other in zip(ours.all(), theirs.all(), strict=True):
        # in fp64, as NumPy does not know that one NaN of bf16 is another
        np.testing.assert_array_equal(array.astype(np.float64), other.astype(np.float64))


@by_precision
@by_optimizer
def test_steps_are_the_reference_s(gpu: Gpu, name: str, types: Precision) -> None:
    """On parts of vectors that begin anywhere, with a rate of zero at the seventh step, and gradients of zero
    among others. Other elements stay.
    """
    optimizer, updates = OPTIMIZERS[name], Updates(gpu)
    for n, start in ((1, 0), (31, 1), (257, 3), (1000, 8), (1003, 0)):
        start = start if optimizer.align == 1 else 256 * start
        where, total = slice(start, start + n), -(-(start + n + 5) // 256) * 256
        ours, theirs = (Vectors.of(optimizer, types, total) for _ in range(2))
        for t in range(1, 10):
            lr, factor = 0.0 if t == 7 else 1e-2 / t, 1.0 if t == 3 else 0.37
            grad = random(f"grad {t}", (total,), types.grad)
            grad[::7] = 0
            given = grad.copy()
            updates.apply(
                optimizer.kernel,
                ours.param,
                grad,
                ours.state,
                Range(where, lr, 0.1),
                verdict(factor, t),
                ours.copy,
            )
            np.testing.assert_array_equal(grad, given)
            apply(optimizer, theirs.param, given, theirs.state, where, Hyper(lr, 0.1, t), factor, to_nearest)
            if theirs.copy is not None:
                theirs.copy[where] = theirs.param[where]
            assert_same(ours, theirs)


@by_precision
@by_optimizer
def test_a_rejected_step_changes_no_byte(gpu: Gpu, name: str, types: Precision) -> None:
    optimizer, n = OPTIMIZERS[name], 257
    vectors, grad = Vectors.of(optimizer, types, n), np.full(n, np.nan, types.grad)
    before = vectors.bytes()
    of = Range(slice(0, n), 1e-2, 0.1)
    Updates(gpu).apply(
        optimizer.kernel, vectors.param, grad, vectors.state, of, verdict(0.0, 0, False), vectors.copy
    )
    assert vectors.bytes() == before


@by_optimizer
def test_no_elements(gpu: Gpu, name: str) -> None:
    optimizer = OPTIMIZERS[name]
    vectors, grad = Vectors.of(optimizer, PRECISIONS["fp32"], 8), np.ones(8, np.float32)
    before = vectors.bytes()
    Updates(gpu).apply(
        optimizer.kernel, vectors.param, grad, vectors.state, Range(slice(0, 0), 1.0, 0.0), verdict(1.0, 1)
    )
    assert vectors.bytes() == before


@pytest.mark.parametrize("name", ["adamw", "adam8bit"])
def test_a_thread_has_many_elements(gpu: Gpu, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a vector that needs more blocks than are started, the last ones of it in part."""
    monkeypatch.setattr(elementwise, "blocks", lambda n, itemsize: blocks(n, itemsize, most=2))
    optimizer, n = OPTIMIZERS[name], 9999
    ours, theirs = (Vectors.of(optimizer, PRECISIONS["bf16"], n) for _ in range(2))
    grad, of = random("grad", (n,), np.dtype(np.float32)), Range(slice(0, n), 1e-2, 0.1)
    Updates(gpu).apply(optimizer.kernel, ours.param, grad, ours.state, of, verdict(0.5, 1), ours.copy)
    apply(optimizer, theirs.param, grad, theirs.state, of.where, Hyper(of.lr, of.decay, 1), 0.5)
    assert theirs.copy is not None
    theirs.copy[:] = theirs.param
    assert_same(ours, theirs)


# ---- Stochastic rounding


def held(shape: tuple[int, ...], box: tuple[slice, ...], run: slice, start: int) -> Held:
    """Of a tensor, as tensor parallelism (`box`) and ZeRO (`run`) have cut it; at `start` in the shard."""
    where = slice(start, start + run.stop - run.start)
    return Held(ParamSpec("w", shape, 0, shape[0], 0.02), box, run, where, True)


HELD = {
    "all of it": held((20, 30), (slice(0, 20), slice(0, 30)), slice(0, 600), 0),
    "a run of it": held((20, 30), (slice(0, 20), slice(0, 30)), slice(111, 500), 7),
    "rows": held((20, 30), (slice(10, 20), slice(0, 30)), slice(5, 290), 3),
    "columns": held((20, 30), (slice(0, 20), slice(10, 17)), slice(13, 140), 9),
    "a vector": held((600,), (slice(300, 600),), slice(100, 300), 0),
}


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("name", ["sgd", "adamw", "sage", "adam8bit"])
def test_stochastic_rounding(gpu: Gpu, name: str, which: str) -> None:
    """The same bits for the same values."""
    optimizer, of, types = OPTIMIZERS[name], HELD[which], PRECISIONS["bf16-pure"]
    if optimizer.align > 1:  # tensors begin with a block
        of = of._replace(where=slice(256, 256 + of.run.stop - of.run.start))
    n = of.where.stop + 3
    ours, theirs, nearest = (Vectors.of(optimizer, types, n) for _ in range(3))
    for t in (1, 2, 3):
        grad, elements = random(f"grad {t}", (n,), types.grad), Range(of.where, 1e-2, 0.1)
        numbers = chance(5, t, "w", of.spec.shape, of.box, of.run)
        rounding = stochastic_rounding(5, t, "w", of.places)
        for vectors, how in ((ours, numbers), (nearest, NEAREST)):
            Updates(gpu).apply(
                optimizer.kernel, vectors.param, grad, vectors.state, elements, verdict(0.5, t), None, how
            )
        apply(optimizer, theirs.param, grad, theirs.state, of.where, Hyper(1e-2, 0.1, t), 0.5, rounding)
        assert_same(ours, theirs)
    assert not np.array_equal(nearest.param, ours.param)


def test_what_is_not_finite_stays(gpu: Gpu) -> None:
    """The largest number of fp32 may be rounded away from zero, to infinity."""
    optimizer, types = OPTIMIZERS["sgd"], PRECISIONS["bf16-pure"]
    of = HELD["a vector"]
    ours, theirs = (Vectors.of(optimizer, types, 200) for _ in range(2))
    for vectors in (ours, theirs):
        vectors.param[:160] = np.repeat([np.inf, -np.inf, np.nan, 3.39e38], 40)
    grad = np.full(200, -6e35, types.grad)
    numbers = chance(0, 1, "w", of.spec.shape, of.box, of.run)
    rounding = stochastic_rounding(0, 1, "w", of.places)
    Updates(gpu).apply(
        optimizer.kernel, ours.param, grad, {}, Range(of.where, 1.0, 0.0), verdict(1.0, 1), None, numbers
    )
    apply(optimizer, theirs.param, grad, {}, of.where, Hyper(1.0, 0.0, 1), 1.0, rounding)
    assert_same(ours, theirs)
    infinite, nan = np.isinf(ours.param.astype(np.float64)), np.isnan(ours.param.astype(np.float64))
    assert infinite[:80].all() and nan[80:120].all() and 0 < infinite[120:160].sum() < 40


# ---- Moments of 8 bits


def test_of_two_codes_equally_near_the_lower_is_taken(gpu: Gpu) -> None:
    """Gradients in the very middle between two values of the map; without averages they are m."""
    optimizer = adam8bit((0.0, 0.0), EPS)
    grad = np.append(MIDPOINTS[True], np.float32(1)) * np.float32(4)
    for part in (grad, -grad, grad[:201], np.zeros(256, np.float32)):
        n = part.size
        ours, theirs = (Vectors.of(optimizer, PRECISIONS["fp32"], n) for _ in range(2))
        of = Range(slice(0, n), 1e-2, 0.0)
        Updates(gpu).apply(optimizer.kernel, ours.param, part, ours.state, of, verdict(1.0, 1))
        apply(optimizer, theirs.param, part.copy(), theirs.state, of.where, Hyper(1e-2, 0.0, 1), 1.0)
        assert_same(ours, theirs)


def test_the_map_s_ties_are_ties() -> None:
    """Else the test above has none."""
    shares = np.append(MIDPOINTS[True], np.float32(1)) * np.float32(4) / np.float32(4)
    assert np.isin(MIDPOINTS[True], shares).all()


# ---- Sophia's estimates


@by_precision
def test_absorb(gpu: Gpu, types: Precision) -> None:
    optimizer = OPTIMIZERS["sophia"]
    for n in (0, 1, 33, 1000):
        ours, theirs = (Vectors.of(optimizer, types, n) for _ in range(2))
        computed = np.dtype(np.float64 if types.master == np.float64 else np.float32)
        estimate = random("estimate", (n,), computed)
        given, before = estimate.copy(), ours.bytes()
        Updates(gpu).absorb(optimizer.kernel, ours.state, np.full(n, np.nan, computed), np.ones(1, np.int64))
        assert ours.bytes() == before
        Updates(gpu).absorb(optimizer.kernel, ours.state, estimate, np.zeros(1, np.int64))
        np.testing.assert_array_equal(estimate, given)
        absorb(optimizer, theirs.state, estimate)
        assert_same(ours, theirs)


def test_an_estimate_has_the_type_of_computation(gpu: Gpu) -> None:
    optimizer = OPTIMIZERS["sophia"]
    state = Vectors.of(optimizer, PRECISIONS["bf16-pure"], 8).state
    estimate = np.zeros(8, ml_dtypes.bfloat16)
    with pytest.raises(AssertionError, match="estimate of bfloat16"):
        Updates(gpu).absorb(optimizer.kernel, state, estimate, np.zeros(1, np.int64))


# ---- Ranges


def test_neighbours_with_the_same_numbers_are_updated_together() -> None:
    def of(start: int, stop: int, lr: float = 1.0, decay: float = 0.1) -> Range:
        return Range(slice(start, stop), lr, decay)

    assert together([]) == []
    assert together([of(0, 0), of(0, 5), of(5, 5), of(5, 9)]) == [of(0, 9)]
    assert together([of(0, 5), of(6, 9)]) == [of(0, 5), of(6, 9)]
    others = [of(0, 5), of(5, 9, decay=0.0), of(9, 12, lr=2.0, decay=0.0), of(12, 15)]
    assert together(others) == others
