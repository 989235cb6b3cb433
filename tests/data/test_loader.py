import numpy as np
import pytest

from minitrain.data.loader import HeldOut, Loader
from minitrain.data.tokens import TokenFile, split
from minitrain.errors import DataError


def counting(n: int) -> TokenFile:
    return TokenFile(np.arange(n, dtype=np.uint16), None, "memory")


def test_sequences_are_as_the_contract_says() -> None:
    loader = Loader(counting(33), 8, 3, 0, False, 100)
    assert loader.n_sequences == 4
    ids, targets = loader.batch(1, 0, 1)
    assert ids.dtype == targets.dtype == np.int64
    assert ids.tolist() == [list(range(i, i + 8)) for i in (0, 8, 16)]
    assert np.array_equal(targets, ids + 1)
    assert loader.batch(2, 0, 1)[0][:, 0].tolist() == [24, 0, 8]
    assert Loader(counting(32), 8, 3, 0, False, 100).n_sequences == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_global_batch_in_order(shuffle: bool) -> None:
    loader = Loader(counting(5000), 16, 12, 3, shuffle, 5000)
    for step in (1, 2, 30):
        whole_ids, whole_targets = loader.batch(step, 0, 1)
        for size in (2, 3, 4, 12):
            parts = [loader.batch(step, rank, size) for rank in range(size)]
            assert np.array_equal(np.concatenate([ids for ids, _ in parts]), whole_ids)
            assert np.array_equal(np.concatenate([targets for _, targets in parts]), whole_targets)


def test_an_epoch_reads_every_token_once() -> None:
    loader = Loader(counting(1001), 10, 10, 0, True, 1001)
    ids = np.concatenate([loader.batch(step, 0, 1)[0] for step in range(1, 11)])
    assert np.array_equal(np.sort(ids.ravel()), np.arange(1000))
    assert not np.array_equal(ids.ravel(), np.arange(1000))


def test_ids_are_checked_when_read() -> None:
    tokens = np.zeros(81, np.uint16)
    tokens[43] = 50256
    train = TokenFile(tokens, None, "a.bin")
    loader = Loader(train, 8, 2, 0, False, 50000)
    loader.batch(1, 0, 1)
    with pytest.raises(DataError, match=r"id 50256 is not .* 50000; a.bin, token 43; .* at least 50257"):
        loader.batch(3, 0, 1)
    heldout = split(train, 0.5, 8)[1]
    with pytest.raises(DataError, match=r"a.bin, token 43;"):
        list(HeldOut(heldout, 8, 2, 0, 1, 0, 50000))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [0, 1, 4, 7, 1000])
def test_held_out_is_read_once_whatever_the_number_of_ranks(size: int, limit: int) -> None:
    file, T, B = counting(103), 10, 2  # 10 sequences
    n = min(limit, 10) if limit else 10
    parts = [HeldOut(file, T, B, rank, size, limit, 103) for rank in range(size)]
    assert {part.n_tokens for part in parts} == {n * T}
    assert len({len(part) for part in parts}) == 1 and len(parts[0]) == -(-n // (B * size))
    batches = [batch for part in parts for batch in part]
    assert all(ids.shape == targets.shape == (B, T) for ids, targets in batches)
    ids, targets = (np.concatenate([batch[k] for batch in batches]).ravel() for k in (0, 1))
    real = targets != -1
    assert ids[real].tolist() == list(range(n * T)) and np.array_equal(targets[real], ids[real] + 1)
    assert not ids[~real].any()


def test_held_out_of_nothing() -> None:
    part = HeldOut(counting(0), 10, 2, 0, 1, 0, 100)
    assert len(part) == 0 and list(part) == [] and part.n_tokens == 0
