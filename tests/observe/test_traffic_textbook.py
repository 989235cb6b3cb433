"""The closed form of the bytes says what the papers say. No rank runs here.

Sizes are powers of two, so that nothing is padded or rounded and every formula holds exactly.
"""

from dataclasses import replace
from fractions import Fraction

import pytest
from layouts import tiny

from minitrain.config import Config, ModelConfig
from minitrain.model.spec import block_specs, model_specs
from minitrain.observe.traffic import Place, Row, traffic

H, B, S, L, V, Q = 64, 2, 32, 4, 128, 8  # width, sequences, positions, layers, vocabulary, bytes of fp64
MODEL = ModelConfig(
    arch="llama", layers=L, width=H, heads=8, kv_heads=8, ffn=128, vocab=V, seq_len=S, tied=False
)
TIED = replace(MODEL, tied=True)
PSI = sum(spec.size for spec in model_specs(MODEL))
PSI_BLOCKS = L * sum(spec.size for spec in block_specs(MODEL, 0))
FIRST = Place(0, 0, 0, 0)


def config(m: int = 1, model: ModelConfig = MODEL, **parallel: object) -> Config:
    """m micro-batches of B sequences."""
    c = tiny(model, **parallel)
    assert c.parallel.dp
    return replace(c, train=replace(c.train, micro_batch=B, global_batch=c.parallel.dp * B * m))


def rows(c: Config, axis: str, place: Place = FIRST) -> list[Row]:
    """Without the sums for norm and loss."""
    return [row for row in traffic(c, place) if row.axis == axis and row.bytes > 8]


def sent(c: Config, axis: str, place: Place = FIRST) -> int:
    return sum(row.sent for row in rows(c, axis, place))


def of_blocks(c: Config) -> int:
    return sum(row.sent for row in rows(c, "tp") if "attention" in row.what or "MLP" in row.what)


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_data_parallel_sends_two_psi(n, m):
    assert sent(config(m, dp=n), "replica") == Fraction(2 * (n - 1), n) * PSI * Q


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_zero_1_sends_what_plain_data_parallel_does(n, m):
    """An all-reduce is a reduce-scatter and an all-gather."""
    assert sent(config(m, dp=n, zero=1), "shard") == sent(config(m, dp=n), "replica")
    assert sent(config(m, dp=n, zero=1), "replica") == 0


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_zero_2_scatters_gradients_for_every_micro_batch(n, m):
    """With one of them, 2 Psi as in the paper."""
    assert sent(config(m, dp=n, zero=2), "shard") == Fraction(n - 1, n) * (m + 1) * PSI * Q


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_zero_3_sends_three_psi_for_every_micro_batch_and_two_of_what_is_read_once(n, m):
    """Blocks are read in forward and backward: 3 Psi as in the paper. The embedding's backward reads no
    parameters, and the head's forward and backward are one visit: 2 Psi.
    """
    ends = PSI - PSI_BLOCKS
    assert sent(config(m, dp=n, zero=3), "shard") == Fraction(n - 1, n) * m * (3 * PSI_BLOCKS + 2 * ends) * Q


def test_a_tied_matrix_is_visited_twice_without_a_pipeline():
    n, m = 4, 3
    matrix = Fraction(n - 1, n) * V * H * Q
    for zero, times in {0: 2, 1: 2, 2: 2 * m + 1, 3: 4 * m}.items():
        c = config(m, TIED, dp=n, zero=zero)
        found = rows(c, "shard" if zero else "replica")
        assert sum(row.sent for row in found if "embedding" in row.what) == times * matrix


def test_hybrid_shards_all_reduce_their_part_among_replicas():
    c = config(dp=8, zero=1, shard=4)
    assert sent(c, "shard") == 2 * Fraction(3, 4) * PSI * Q
    assert sent(c, "replica") == 2 * Fraction(1, 2) * PSI / 4 * Q


@pytest.mark.parametrize("t", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_tensor_parallel_sends_8bsh_a_block_and_micro_batch(t, m):
    """Four all-reduces, two in the forward and two in the backward."""
    c = config(m, tp=t)
    blocks = [row for row in rows(c, "tp") if "attention" in row.what or "MLP" in row.what]
    assert [(row.verb, row.calls, row.bytes) for row in blocks] == 4 * [("all_reduce", m * L, B * S * H * Q)]
    assert of_blocks(c) == Fraction(t - 1, t) * 8 * B * S * H * Q * L * m


@pytest.mark.parametrize("t", [2, 4, 8])
@pytest.mark.parametrize("m", [1, 3])
def test_sequence_parallel_sends_as_much_and_gathers_two_inputs_again(t, m):
    again = Fraction(t - 1, t) * 2 * B * S * H * Q * L * m
    c = config(m, tp=t, sequence=True)
    assert of_blocks(c) == of_blocks(config(m, tp=t)) + again
    assert sum(row.sent for row in rows(c, "tp") if "MLP input, all rows again" in row.what) == again / 2


@pytest.mark.parametrize("sequence, head", [(False, 2), (True, 2)])
def test_embedding_and_head_are_each_one_side_of_a_region(sequence, head):
    t, m = 4, 3
    found = rows(config(m, tp=t, sequence=sequence), "tp")
    one = Fraction(t - 1, t) * B * S * H * Q * m
    assert (
        sum(row.sent for row in found if row.what.removeprefix("gradient of ").startswith("embedding"))
        == 2 * one
    )
    assert sum(row.sent for row in found if "head input" in row.what) == head * one


@pytest.mark.parametrize("sequence", [False, True])
def test_the_loss_sends_three_numbers_a_token(sequence):
    t, m = 4, 3
    found = [row for row in rows(config(m, tp=t, sequence=sequence), "tp") if "every token" in row.what]
    assert sum(row.sent for row in found) == Fraction(t - 1, t) * 2 * 3 * B * S * Q * m


@pytest.mark.parametrize("sequence", [False, True])
def test_a_pipeline_sends_activations_on_and_gradients_back(sequence):
    """2 b s h over every boundary, for every micro-batch; under `sequence` of this rank's rows only."""
    m, p, t = 3, 4, 2
    c = config(m, pp=p, tp=t, sequence=sequence)
    stages = [sent(c, "pp", Place(0, 0, stage, 0)) for stage in range(p)]
    one = m * B * S * H * Q // (t if sequence else 1)
    assert stages == [one, 2 * one, 2 * one, one]
    assert sum(stages) == 2 * one * (p - 1)


def test_a_pipeline_sums_the_tied_matrix_of_its_ends():
    c = config(model=TIED, pp=4, dp=2, zero=1)
    ends = [sent(c, "tied", Place(0, 0, stage, 0)) for stage in range(4)]
    assert ends == [V * H * Q // 2, 0, 0, V * H * Q // 2]  # 2 (2-1)/2 of the shard, half of the matrix


def test_copies_of_kv_heads_are_summed():
    """tp 8 with 2 kv heads: four ranks hold the same k and v."""
    c = config(3, replace(MODEL, kv_heads=2), tp=8)
    assert sent(c, "kv") == 2 * Fraction(3, 4) * L * 2 * (H // 8) * H * Q


def test_half_the_precision_sends_half_the_bytes():
    wide = config(3, dp=2, tp=2, pp=2, zero=3, sequence=True)
    for axis in ("shard", "tp", "pp"):
        assert 2 * sent(replace(wide, precision="fp32"), axis) == sent(wide, axis) > 0
