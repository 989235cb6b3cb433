import pytest

from minitrain.arrays.blocks import BLOCK_BYTES, row_blocks


@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("row_bytes", [0, 1, 400, BLOCK_BYTES // 3, BLOCK_BYTES, 5 * BLOCK_BYTES])
def test_every_row_once_in_order_and_no_block_too_large(n_rows, row_bytes):
    blocks = list(row_blocks(n_rows, row_bytes))
    assert [i for b in blocks for i in range(n_rows)[b]] == list(range(n_rows))
    for b in blocks:
        assert b.stop - b.start == 1 or (b.stop - b.start) * row_bytes <= BLOCK_BYTES


def test_no_more_blocks_than_needed():
    assert len(list(row_blocks(7, BLOCK_BYTES // 3))) == 3
