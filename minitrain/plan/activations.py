"""Bytes that a stage keeps from the forward of a micro-batch to its backward, and of how many at once.

Per block, with b sequences of s positions, S rows outside the tensor-parallel region (b s, or b s / t
under sequence parallelism), h width, F_t, H_t, G_t ffn width, query and kv heads of this rank, d head
width, q bytes of an activation and w of a statistic:

    two norms         2 (2 q S h + w S)            the normalised rows x^ and their output; 1 / deviation
    attention         q b s d (2 H_t + 2 G_t)      q, k, v and the output o
      on the host     q b H_t s (s + 64) / 2       e^s: the scores below the diagonal, in blocks of 64 queries
                      w b H_t s                    and the reciprocal of its sums
      on a GPU        w b H_t s                    the log of the sums: scores are computed again
    MLP, llama        q b s F_t 4  or  3           gate, up, their product, on the host the sigmoid too
         gpt2         q b s F_t 3  or  2           input, output, on the host the tanh too

A GPU keeps the input of a norm instead of x^, which is as much, and of LayerNorm the mean as well. For heads
of a width that flash attention has no kernel for (`FLASH`), and with attention = materialised, it keeps the
scores as the host does.

With recompute = selective q, k, v and o are all of attention, whose forward is done again up to o; with full
the block's input is all, q S h.

What a micro-batch keeps is kept of all whose backward is still to come: m of them by GPipe, by 1F1B
min(m, p - s) on stage s, counted from 0.
"""

from minitrain.config import Config
from minitrain.plan.held import SIZES, Spot, layers_of, layout_of, piece

QUERIES = 64  # of a block of scores on the host
FLASH = (32, 64, 128)  # widths of heads
FLASH_ROW = 256  # bytes of one at most
KEPT = {"none": "norms + attention + MLP", "selective": "norms + q, k, v, o + MLP", "full": "q S h"}
"""In words, what a micro-batch keeps of a block, by `parallel.recompute`."""


def kept_of_a_block(config: Config, tp_rank: int, gpu: bool) -> int:
    """Bytes of one block and micro-batch, from the forward to the backward."""
    match config.parallel.recompute:
        case "full":
            return SIZES[config.precision].param * layout_of(config).rows * config.model.width
        case "selective":
            return made_by_a_block(config, tp_rank, gpu) - _scores(config, gpu)
        case "none":
            return made_by_a_block(config, tp_rank, gpu)


def made_by_a_block(config: Config, tp_rank: int, gpu: bool) -> int:
    """Bytes that the backward of a block needs, kept or made again."""
    model, at, sizes = config.model, layout_of(config), SIZES[config.precision]
    assert model.kv_heads and model.ffn, "the configuration is resolved"
    q, w, gpt2 = sizes.param, sizes.wide, model.arch == "gpt2"
    b, s, S, h = config.train.micro_batch, model.seq_len, at.rows, model.width
    d, H, G = h // model.heads, model.heads // at.tp, max(1, model.kv_heads // at.tp)
    F = piece(model.ffn, tp_rank, at.tp)

    norms = 2 * (2 * q * S * h + w * S * (2 if gpu and gpt2 else 1))
    attention = q * b * s * d * (2 * H + 2 * G) + _scores(config, gpu)
    mlp = q * b * s * F * ((3 if gpt2 else 4) - (1 if gpu else 0))
    return norms + attention + mlp


def _scores(config: Config, gpu: bool) -> int:
    """Of attention, what its forward makes besides o."""
    sizes, model = SIZES[config.precision], config.model
    b, s, H = config.train.micro_batch, model.seq_len, model.heads // layout_of(config).tp
    scores = sizes.param * b * H * _below_diagonal(s) if not gpu or keeps_scores(config) else 0
    return scores + sizes.wide * b * H * s


def keeps_scores(config: Config) -> bool:
    """On a GPU."""
    width, item = config.model.width // config.model.heads, SIZES[config.precision].param
    supported = width in FLASH and width * item <= FLASH_ROW
    return config.attention == "materialised" or (config.attention == "auto" and not supported)


def in_flight(config: Config, stage: int) -> int:
    """Micro-batches whose activations a stage keeps at once, at most."""
    at = layout_of(config)
    return at.micro if config.parallel.schedule == "gpipe" else min(at.micro, at.pp - stage)


def activations(config: Config, spot: Spot, gpu: bool = False) -> int:
    """The most that a stage keeps at once."""
    one = layers_of(config, spot.stage) * kept_of_a_block(config, spot.tp, gpu)
    return one * in_flight(config, spot.stage)


def _below_diagonal(s: int) -> int:
    """Scores of a head: queries i to j see keys 0 to j. s (s + 64) / 2 where 64 divides s."""
    whole, rest = divmod(s, QUERIES)
    return QUERIES * QUERIES * whole * (whole + 1) // 2 + rest * s
