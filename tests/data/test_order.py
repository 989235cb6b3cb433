import numpy as np
import pytest

from minitrain.data.order import sequence_indices

SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 65, 97, 127, 128, 255, 256, 257, 1000, 1023, 4099, 65536]


def epoch(n: int, number: int, seed: int = 0) -> np.ndarray:
    """The permutation of one epoch: with n sequences a step, step t is epoch t - 1."""
    return sequence_indices(number + 1, n, n, seed, True)


def test_file_order() -> None:
    assert sequence_indices(1, 4, 10, 5, False).tolist() == [0, 1, 2, 3]
    assert sequence_indices(3, 4, 10, 5, False).tolist() == [8, 9, 0, 1]
    assert sequence_indices(1, 5, 2, 5, False).tolist() == [0, 1, 0, 1, 0]


def test_known_answers() -> None:
    """The order of a run must never change: not with NumPy's version, not with the machine."""
    assert sequence_indices(1, 8, 100, 0, True).tolist() == KNOWN_FIRST
    assert sequence_indices(12345, 8, 63902, 7, True).tolist() == KNOWN_LATER


KNOWN_FIRST = [54, 21, 65, 43, 35, 55, 41, 84]
KNOWN_LATER = [41704, 31796, 12937, 40658, 46221, 45434, 15808, 58685]


@pytest.mark.parametrize("n", SIZES)
def test_every_epoch_is_a_permutation(n: int) -> None:
    for number in (0, 1, 2, 1000):
        for seed in (0, 1, 2**40):
            assert np.array_equal(np.sort(epoch(n, number, seed)), np.arange(n))


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (7, 3), (5, 16), (97, 8)])
def test_batches_continue_across_epochs(n: int, batch: int) -> None:
    steps = n * 3
    stream = np.concatenate([sequence_indices(t, batch, n, 3, True) for t in range(1, steps + 1)])
    for number, part in enumerate(stream.reshape(-1, n)):
        assert np.array_equal(part, epoch(n, number, 3))


@pytest.mark.parametrize("n", [64, 97, 1000])
def test_epochs_and_seeds_differ(n: int) -> None:
    orders = [epoch(n, number, seed) for number in range(8) for seed in range(8)]
    assert len({order.tobytes() for order in orders}) == 64
    same = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert abs(np.mean(same) * n - 1) < 0.15  # two random permutations agree in one place on average


def test_large_seeds_count_in_full() -> None:
    assert not np.array_equal(epoch(1000, 0, 1), epoch(1000, 0, 1 + 2**32))


@pytest.mark.parametrize("n", [1000, 1024, 4099])
def test_looks_like_a_random_permutation(n: int) -> None:
    """Four statistics over 64 epochs, each within six standard errors of that of a uniform permutation."""
    orders = np.stack([epoch(n, number) for number in range(64)]).astype(float)
    steps = np.diff(orders, axis=1)
    samples = 64 * n

    displacement = np.abs(orders - np.arange(n)).mean() / n
    assert abs(displacement - 1 / 3) < 6 * np.sqrt(1 / 18 / samples)
    neighbours = np.mean(np.abs(steps) == 1) * n / 2
    assert abs(neighbours - 1) < 6 / np.sqrt(2 * 64)
    correlation = [np.corrcoef(a[:-1], a[1:])[0, 1] for a in orders]
    assert abs(np.mean(correlation)) < 6 / np.sqrt(samples) + 2 / n
    ascents = np.mean(steps > 0)
    assert abs(ascents - 0.5) < 6 * np.sqrt(1 / 12 / samples)


def test_every_place_gets_every_sequence_equally_often() -> None:
    n, epochs = 16, 4000
    orders = sequence_indices(1, n * epochs, n, 0, True).reshape(epochs, n)
    counts = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    expected = epochs / n
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    degrees = (n - 1) ** 2
    assert abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees)
