"""The batch of a step, and the batches of a validation: this rank's part, computed from nothing but numbers.

B sequences of a part, T positions. Sequence i is the T + 1 tokens [i T, i T + T]: inputs are its first T,
targets its last T. N tokens make n = (N - 1) // T sequences; neighbours share one token, which is a target of
one and an input of the next.
"""

from collections.abc import Iterator

import numpy as np

from minitrain.arrays.types import Array
from minitrain.data.order import sequence_indices
from minitrain.data.tokens import TokenFile, check_ids, check_length

PADDING = -1  # a target that no loss counts


def read_sequences(file: TokenFile, index_B: Array, seq_len: int, vocab: int) -> tuple[Array, Array]:
    """(ids_BT, targets_BT), int64, of sequences `index_B`. Raises DataError for an id not below `vocab`, and
    for a file that has become shorter.
    """
    check_length(file)
    start_B1 = index_B[:, None] * seq_len
    window = file.tokens[start_B1 + np.arange(seq_len + 1)]  # [B, T + 1]
    check_ids(file, window, start_B1, vocab)
    window = window.astype(np.int64)
    return window[:, :-1], window[:, 1:]


class Loader:
    """Training batches: a pure function of (seed, step, rank, size); nothing to save or to restore."""

    def __init__(
        self, file: TokenFile, seq_len: int, global_batch: int, seed: int, shuffle: bool, vocab: int
    ) -> None:
        self.file, self.seq_len, self.vocab = file, seq_len, vocab
        self.global_batch, self.seed, self.shuffle = global_batch, seed, shuffle
        self.n_sequences = (len(file.tokens) - 1) // seq_len
        assert self.n_sequences > 0

    def batch(self, step: int, rank: int, size: int) -> tuple[Array, Array]:
        """(ids_BT, targets_BT) of dp rank `rank` of `size` at `step` (from 1): a run of the global batch."""
        assert self.global_batch % size == 0
        B = self.global_batch // size
        index = sequence_indices(step, self.global_batch, self.n_sequences, self.seed, self.shuffle)
        return read_sequences(self.file, index[rank * B : (rank + 1) * B], self.seq_len, self.vocab)


class HeldOut:
    """The batches of a validation: equally many on every rank, all of full shape, padded beyond the end.

    `n_tokens` counts the real targets over all ranks: a sum of losses divided by it is the mean in any case.
    """

    def __init__(
        self, file: TokenFile, seq_len: int, micro_batch: int, rank: int, size: int, limit: int, vocab: int
    ) -> None:
        """The part of `rank` of `size` in the first `limit` sequences of `file` (0: in all)."""
        n = max(0, (len(file.tokens) - 1) // seq_len)
        self.n_sequences = min(n, limit) if limit else n
        self.n_tokens = self.n_sequences * seq_len
        self.file, self.seq_len, self.vocab = file, seq_len, vocab
        self.micro_batch, self.rank = micro_batch, rank
        self._n_batches = -(-self.n_sequences // (micro_batch * size))

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """(ids_BT, targets_BT), int64; padding has ids 0 and targets -1."""
        for m in range(self._n_batches):
            first = (self.rank * self._n_batches + m) * self.micro_batch
            real = np.arange(first, min(first + self.micro_batch, self.n_sequences))
            ids_BT = np.zeros((self.micro_batch, self.seq_len), np.int64)
            targets_BT = np.full_like(ids_BT, PADDING)
            B = len(real)
            ids_BT[:B], targets_BT[:B] = read_sequences(self.file, real, self.seq_len, self.vocab)
            yield ids_BT, targets_BT
