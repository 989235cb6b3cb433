"""The oracle catches what it is there to catch."""

import numpy as np
import pytest
from oracle import COMPOSITE, OP, check_directional, gradient_error

from minitrain.ops.norm import rms_norm_backward, rms_norm_forward

EPS = 1e-5


def problem():
    rng = np.random.default_rng(0)
    x, gain, dy = rng.standard_normal((7, 5)), rng.standard_normal(5), rng.standard_normal((7, 5))
    dgain = np.zeros(5)
    dx = rms_norm_backward(dy, rms_norm_forward(x, gain, EPS)[1], gain, dgain)

    def f(arrays):
        return float(np.vdot(dy, rms_norm_forward(*arrays, EPS)[0]))

    return f, [x, gain], [dx, dgain]


def test_a_right_gradient_passes_with_a_wide_margin():
    assert gradient_error(*problem()) < OP / 100


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("tolerance", [OP, COMPOSITE])
def test_a_factor_wrong_by_one_millionth_is_caught(which, tolerance):
    f, x, dx = problem()
    dx[which] = dx[which] * (1 + 1e-6)
    with pytest.raises(AssertionError, match="gradient error"):
        check_directional(f, x, dx, tolerance)


@pytest.mark.parametrize("which", [0, 1])
def test_a_direction_wrong_by_one_millionth_is_caught(which):
    f, x, dx = problem()
    noise = np.random.default_rng(1).standard_normal(dx[which].shape)
    dx[which] = dx[which] + 1e-6 * np.linalg.norm(dx[which]) / np.linalg.norm(noise) * noise
    with pytest.raises(AssertionError, match="gradient error"):
        check_directional(f, x, dx, COMPOSITE)


def test_an_error_in_a_small_gradient_beside_a_large_one_is_caught():
    def f(arrays):
        return float(1e3 * np.sum(np.sin(arrays[0])) + np.sum(np.sin(arrays[1])))

    x = [np.linspace(0, 1, 9), np.linspace(1, 2, 4)]
    dx = [1e3 * np.cos(x[0]), np.cos(x[1])]
    check_directional(f, x, dx)
    with pytest.raises(AssertionError):
        check_directional(f, x, [dx[0], dx[1] * (1 + 1e-5)])


def test_a_truly_zero_gradient_is_accepted_and_a_wrong_one_in_its_place_is_not():
    def f(arrays):
        return float(np.sum(np.exp(arrays[0])) + 0 * np.sum(arrays[1]))

    x = [np.linspace(0, 1, 3), np.ones(2)]
    check_directional(f, x, [np.exp(x[0]), np.zeros(2)])
    with pytest.raises(AssertionError):
        check_directional(f, x, [np.exp(x[0]), np.full(2, 1e-6)])


def test_single_precision_is_refused():
    f, x, dx = problem()
    with pytest.raises(AssertionError, match="fp64"):
        check_directional(f, [a.astype(np.float32) for a in x], dx)
