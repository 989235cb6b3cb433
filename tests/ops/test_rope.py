import math

import numpy as np
import pytest
from oracle import check_directional

from minitrain.ops.rope import rope_backward, rope_forward, rope_table

B, T, H, K, THETA = 2, 5, 3, 6, 100.0


def table(n_positions=T + 2, dtype=np.float64):
    return rope_table(n_positions, K, THETA, dtype)


def sample(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((B, T, H, K)).astype(dtype)


def test_forward_rotates_each_pair_by_its_position():
    x = sample()
    y = rope_forward(x.copy(), table())
    for t in range(T):
        for j in range(K // 2):
            angle = t * THETA ** (-2 * j / K)
            rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            pair = slice(2 * j, 2 * j + 2)
            np.testing.assert_allclose(y[:, t, :, pair], x[:, t, :, pair] @ rotation.T, atol=1e-14)


def test_scores_depend_on_the_difference_of_positions_only():
    q, k = np.random.default_rng(0).standard_normal((2, K))
    rotated_q = rope_forward(np.tile(q, (1, T, 1, 1)).reshape(1, T, 1, K), table())[0, :, 0]
    rotated_k = rope_forward(np.tile(k, (1, T, 1, 1)).reshape(1, T, 1, K), table())[0, :, 0]
    scores = rotated_q @ rotated_k.T
    for shift in range(1, T):
        np.testing.assert_allclose(scores[shift:, shift:], scores[:-shift, :-shift], rtol=1e-12)
    assert abs(scores[1, 0] - scores[0, 1]) > 1e-3


def test_gradient():
    x, dy = sample(0), sample(1)
    dx = rope_backward(dy.copy(), table())
    check_directional(lambda a: float(np.vdot(dy, rope_forward(a[0], table()))), [x], [dx])


@pytest.mark.parametrize("op", [rope_forward, rope_backward])
def test_works_in_place_also_on_a_part_of_wider_rows(op):
    x = sample()
    rows = np.zeros((B * T, 2 + H * K))
    rows[:, 2:] = x.reshape(B * T, H * K)
    part = rows.reshape(B, T, 2 + H * K)[:, :, 2:].reshape(B, T, H, K)
    assert np.shares_memory(part, rows)
    assert op(part, table()) is part
    np.testing.assert_array_equal(rows[:, 2:].reshape(B, T, H, K), op(x, table()))
    assert not rows[:, :2].any()


def test_single_precision_stays_single_with_angles_of_double_precision():
    x = sample(dtype=np.float32)
    assert rope_forward(x, table(dtype=np.float32)).dtype == np.float32
    far = rope_table(100_001, K, THETA, np.float32)[100_000]
    assert far.dtype == np.complex64
    np.testing.assert_allclose(far, rope_table(100_001, K, THETA, np.float64)[100_000], atol=1e-7)
