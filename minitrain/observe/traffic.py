"""The bytes that a rank sends in one training step: a closed form of the configuration's integers alone.

This file says independently what the communicating code says by doing. It imports none of that code, and
`tests/observe/test_traffic.py` compares the two exactly. Validation, which comes between steps, is not in it.

Symbols, of one rank:
    Psi  parameters of its stage and tp slice      m  micro-batches of a step       h  width
    N_d  data-parallel ranks                       b  sequences of a micro-batch    l  blocks of its stage
    t    tensor-parallel ranks                     s  positions of a sequence       q  bytes of an element

q is that of activations, of parameters or of gradients, whatever moves: they differ in mixed precision.

Of a buffer of X bytes each rank of a ring of n sends (Patarasuk & Yuan 2009): in an all-reduce 2 X (n-1)/n,
in a reduce-scatter or an all-gather X (n-1)/n, rounded up to whole bytes; a message is X. Up to rounding and
padding a step sends

    tp       8 m l b s h q (t-1)/t   four all-reduces a block (Shoeybi et al. 2019, 3)
             10 m l b s h q (t-1)/t  under `sequence`: each is a reduce-scatter and an all-gather, which send
                                     as much; + 2, since of the inputs of attention and MLP a rank keeps its
                                     rows only, and the backward gathers all (Korthikanti et al. 2022, 4.2.2)
             4 m l b s h q (t-1)/t   under full recomputation: the forward's once more
             2 m b s h q (t-1)/t     embedding, on the first stage
             2 m b s h q (t-1)/t     head, on the last stage
             6 m b s q (t-1)/t       loss: maximum, sum of exponentials and target's logit of every token
                                     (q is 4 where activations have 2 bytes)
    pp       2 m b s h q             activations on, gradients back; half of it at either end of the pipeline,
                                     1/t of it under `sequence` (Narayanan et al. 2021, 3.2)
    replica  2 Psi q (N_d-1)/N_d     ZeRO 0: all-reduce of the gradients (with shards: of Psi / their number)
    shard    2 Psi q (N_d-1)/N_d     ZeRO 1: reduce-scatter of the gradients, all-gather of the parameters
             (m+1) Psi q (N_d-1)/N_d ZeRO 2: gradients are scattered after every backward
             3 m Psi q (N_d-1)/N_d   ZeRO 3: and parameters gathered for every forward and every backward
                                     (Rajbhandari et al. 2020, 7)

and little things: the tied embedding between first and last stage; gradients of kv heads among the ranks with
copies; under `sequence` gradients of what every tp rank holds whole (gains, positions, biases added after a
sum), as each rank saw some of the rows; the sums for norm and loss, and whether to skip the step; under fp8
the largest magnitudes. Optimizers that look at whole tensors add up over shard and tp: LAMB two numbers a
tensor, Adafactor these and all rows and columns, Muon all matrices. Not in it are Sophia's second passes,
which come before some steps.

Rajbhandari et al. have m = 1 and gather every parameter twice. Here forward and backward of the head are one
visit, and the backward of an embedding reads no parameters: head, embedding and positions take 2 m Psi, not
3 m. A tied matrix without a pipeline is visited as embedding and as head: 2 m + 1 under ZeRO 2, 4 m under 3.

Under run.exact gradients are cut over `shard` once a step at every stage of ZeRO, and summed over it and
`replica` by messages: N_s - 1 of a shard each, and log2 N_r (an all-reduce sends 2 (N_r-1)/N_r); so is
every other sum over `shard`, by log2 N_s. What tp ranks saw apart is summed in every visit. A tied matrix
without a pipeline is held twice. The sum for the norm is of an integer of many digits, and that for the loss
of a number for each micro-batch of the step.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from minitrain.config import Config, ModelConfig


class Place(NamedTuple):
    """Where a rank is in the grid."""

    replica: int
    shard: int
    pp: int
    tp: int


class Row(NamedTuple):
    """One kind of collective or message of a rank."""

    axis: str
    verb: str
    what: str
    calls: int  # in one step
    bytes: int  # of the buffer; of the larger one, where two differ
    sent: int  # by this rank in one step


def places(config: Config) -> list[Place]:
    """Of all ranks, in rank order."""
    dp, shard, pp, tp = _extents(config)
    return [
        Place(data // shard, data % shard, stage, rank)
        for data in range(dp)
        for stage in range(pp)
        for rank in range(tp)
    ]


def traffic(config: Config, place: Place) -> list[Row]:
    """All that the rank at `place` sends in one training step of a (resolved) configuration.

    A group of one has no rows. Every replica and every shard sends the same.
    """
    r = _rank(config, place)
    rows = []
    entries = (*_tensor(r), *_pipeline(r), *_data(r), *_update(r), *_scalars(r))
    for axis, verb, what, calls, n_bytes in entries:
        size = r.sizes[axis]
        if size > 1 and calls and n_bytes:
            rows.append(Row(axis, verb, what, calls, n_bytes, calls * _ring(verb, n_bytes, size)))
    return rows


def sent_bytes(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """The rows summed up, as {axis: {verb: bytes sent}}: what `comm_bytes` of a step's metrics is."""
    total: dict[str, dict[str, int]] = {}
    for row in sorted(rows):
        verbs = total.setdefault(row.axis, {})
        verbs[row.verb] = verbs.get(row.verb, 0) + row.sent
    return total


def _ring(verb: str, n_bytes: int, n: int) -> int:
    match verb:
        case "all_reduce":
            return -(-2 * (n - 1) * n_bytes // n)
        case "reduce_scatter" | "all_gather":
            return -(-(n - 1) * n_bytes // n)
        case _:
            return n_bytes  # a message


_SCALAR = 8  # loss and norm are fp64 in every precision
_DIGITS = 69  # of 32 bits: from the smallest number of fp64 to above the largest


class _Bytes(NamedTuple):
    """Of an element: of parameters and activations, of gradients, and where neither is rounded."""

    param: int
    grad: int
    wide: int


_BYTES = {
    "fp64": _Bytes(8, 8, 8),
    "fp32": _Bytes(4, 4, 4),
    "fp16": _Bytes(2, 2, 4),
    "bf16": _Bytes(2, 4, 4),
    "bf16-pure": _Bytes(2, 2, 4),
    "fp8": _Bytes(2, 4, 4),
}

Entry = tuple[str, str, str, int, int]
"""axis, verb, what for, calls in one step, bytes of the buffer; whatever the size of the group."""


class _Tensor(NamedTuple):
    shape: tuple[int, ...]  # of the whole
    part: Literal["whole", "copied", "cut"]  # every tp rank holds it; several do (kv heads); this one alone
    size: int  # elements that this tp rank holds


class _Unit(NamedTuple):
    """Parameters that ZeRO gathers and scatters together."""

    name: str
    number: int  # of equal units on this stage
    tensors: list[_Tensor]
    reads: tuple[str, ...]  # visits of a micro-batch that read the parameters
    writes: tuple[str, ...]  # visits that add to the gradients

    def elements(self, part: str, align: int) -> int:
        """Of one kind, each tensor padded to a multiple of `align`."""
        return sum(-(-t.size // align) * align for t in self.tensors if t.part == part)


class _Rank(NamedTuple):
    """What the formulas know of a rank."""

    sizes: dict[str, int]  # of its group on each axis
    first: bool  # is its stage the first, the last?
    last: bool
    layers: int  # l
    micro: int  # m
    tokens: int  # b s
    width: int  # h
    bytes: _Bytes
    align: int
    optimizer: str
    n_scaled: int  # tensors that fp8 scales
    zero: int
    sequence: bool
    recompute: bool  # whole blocks
    exact: bool
    units: list[_Unit]


def _extents(config: Config) -> tuple[int, int, int, int]:
    p = config.parallel
    assert p.dp and p.shard and p.pp and p.tp, "the configuration is resolved"
    return p.dp, p.shard, p.pp, p.tp


def _rank(config: Config, place: Place) -> _Rank:
    model, train = config.model, config.train
    dp, shard, pp, tp = _extents(config)
    assert model.kv_heads and train.global_batch, "the configuration is resolved"
    first, last = place.pp == 0, place.pp == pp - 1
    sizes = {"replica": dp // shard, "shard": shard, "dp": dp, "pp": pp, "tp": tp}
    sizes["world"] = dp * pp * tp
    sizes["kv"] = max(1, tp // model.kv_heads)
    sizes["tied"] = 2 if model.tied and pp > 1 and (first or last) else 1
    layers = model.layers // pp + (place.pp < model.layers % pp)  # the first stages take the remainder
    return _Rank(
        sizes=sizes,
        first=first,
        last=last,
        layers=layers,
        micro=train.global_batch // (dp * train.micro_batch),
        tokens=train.micro_batch * model.seq_len,
        width=model.width,
        bytes=_BYTES[config.precision],
        align=256 if config.optim.name == "adam8bit" or config.run.exact else 1,
        optimizer=config.optim.name,
        n_scaled=3 * (6 if model.arch == "gpt2" else 7) * layers if config.precision == "fp8" else 0,
        zero=config.parallel.zero,
        sequence=config.parallel.sequence,
        recompute=config.parallel.recompute == "full",
        exact=config.run.exact,
        units=[
            _block(model, layers, place.tp, tp),
            *_ends(model, first, last, place.tp, tp, twice=config.run.exact and first and last),
        ],
    )


def _piece(n: int, rank: int, size: int) -> int:
    """How many of n rows the rank holds, as even as whole rows allow."""
    return n * (rank + 1) // size - n * rank // size


def _block(model: ModelConfig, layers: int, rank: int, size: int) -> _Unit:
    assert model.kv_heads and model.ffn, "the configuration is resolved"
    gpt2, width = model.arch == "gpt2", model.width
    head_width = width // model.heads
    query, key_value = head_width * (model.heads // size), head_width * max(1, model.kv_heads // size)
    ffn = _piece(model.ffn, rank, size)

    def reading(outputs: int, part: Literal["copied", "cut"], held: int) -> list[_Tensor]:
        bias = [_Tensor((outputs,), part, held)] if gpt2 else []
        return [_Tensor((outputs, width), part, held * width), *bias]

    def writing(inputs: int, held: int) -> list[_Tensor]:
        bias = [_Tensor((width,), "whole", width)] if gpt2 else []
        return [_Tensor((width, inputs), "cut", width * held), *bias]

    whole_kv = head_width * model.kv_heads
    tensors = [
        *[_Tensor((width,), "whole", width)] * (4 if gpt2 else 2),  # the norms' gains, gpt2's biases
        *reading(width, "cut", query),
        *reading(whole_kv, "copied", key_value),
        *reading(whole_kv, "copied", key_value),
        *writing(width, query),
        *reading(model.ffn, "cut", ffn) * (1 if gpt2 else 2),  # up, and llama's gate
        *writing(model.ffn, ffn),
    ]
    return _Unit("blocks", layers, tensors, ("forward", "backward"), ("backward",))


def _ends(model: ModelConfig, first: bool, last: bool, rank: int, size: int, twice: bool) -> Iterator[_Unit]:
    """`twice`: a tied matrix is a unit of its own for each of its uses."""
    gpt2, width = model.arch == "gpt2", model.width
    matrix = _Tensor((model.vocab, width), "cut", width * _piece(model.vocab, rank, size))
    if first or (last and model.tied):
        head = ("head",) if last and model.tied and not twice else ()
        reads = ("forward", *head) if first else head
        writes = ("backward", *head) if first else head
        yield _Unit("embedding", 1, [matrix], reads, writes)
    if model.tied and twice:
        yield _Unit("output", 1, [matrix], ("head",), ("head",))
    if first and gpt2:
        positions = _Tensor((model.seq_len, width), "whole", model.seq_len * width)
        yield _Unit("positions", 1, [positions], ("forward",), ("backward",))
    if last:
        norm = [_Tensor((width,), "whole", width)] * (2 if gpt2 else 1)
        yield _Unit("head", 1, [*norm, *([] if model.tied else [matrix])], ("head",), ("head",))


def _tensor(r: _Rank) -> Iterator[Entry]:
    """What crosses the border of the tensor-parallel regions, and the loss."""
    blocks = r.layers * r.micro
    yield from _enter(r, "attention input", "heads", blocks)
    yield from _leave(r, "attention output", "heads", blocks)
    yield from _enter(r, "MLP input", "ffn", blocks)
    yield from _leave(r, "MLP output", "ffn", blocks)
    if r.recompute:
        for what, over in (("attention", "heads"), ("MLP", "ffn")):
            yield from _enter_forward(r, f"{what} input, recomputed", blocks)
            yield from _leave_forward(r, f"{what} output, recomputed", over, blocks)
    if r.first:
        yield from _leave(r, "embedding", "the vocabulary", r.micro)
    if r.last:
        yield from _enter(r, "head input", "the vocabulary", r.micro, kept=True)
        yield "tp", "all_reduce", "largest logit of every token", r.micro, r.tokens * r.bytes.wide
        sums = "sum of exponentials and target's logit of every token"
        yield "tp", "all_reduce", sums, r.micro, 2 * r.tokens * r.bytes.wide


def _enter(r: _Rank, what: str, over: str, calls: int, kept: bool = False) -> Iterator[Entry]:
    """Into a region: the forward needs all rows; the backward leaves a partial sum over what a rank holds.

    The weights' gradients need all rows too, which are gathered again unless they were kept.
    """
    yield from _enter_forward(r, what, calls)
    if r.sequence and not kept:
        yield "tp", "all_gather", f"{what}, all rows again for the weights' gradients", calls, _rows(r)
    yield "tp", _sum(r), f"gradient of {what}, sum over {over}", calls, _rows(r)


def _leave(r: _Rank, what: str, over: str, calls: int) -> Iterator[Entry]:
    """Out of a region: the forward leaves a partial sum; the backward needs all rows."""
    yield from _leave_forward(r, what, over, calls)
    if r.sequence:
        yield "tp", "all_gather", f"gradient of {what}, all rows", calls, _rows(r)


def _enter_forward(r: _Rank, what: str, calls: int) -> Iterator[Entry]:
    if r.sequence:
        yield "tp", "all_gather", f"{what}, all rows", calls, _rows(r)


def _leave_forward(r: _Rank, what: str, over: str, calls: int) -> Iterator[Entry]:
    yield "tp", _sum(r), f"{what}, sum over {over}", calls, _rows(r)


def _sum(r: _Rank) -> str:
    """Of a partial sum: the rows that a rank holds outside the region."""
    return "reduce_scatter" if r.sequence else "all_reduce"


def _rows(r: _Rank) -> int:
    """Bytes of all rows of a micro-batch."""
    return r.tokens * r.width * r.bytes.param


def _pipeline(r: _Rank) -> Iterator[Entry]:
    rows = r.tokens // r.sizes["tp"] if r.sequence else r.tokens
    n_bytes = rows * r.width * r.bytes.param
    yield "pp", "send", "activations to the next stage", 0 if r.last else r.micro, n_bytes
    yield "pp", "send", "gradients to the previous stage", 0 if r.first else r.micro, n_bytes


def _data(r: _Rank) -> Iterator[Entry]:
    """Gradients are summed, and parameters gathered, once a step or at each visit of a micro-batch."""
    shard = r.sizes["shard"]
    for u in r.units:
        n = sum(u.elements(part, r.align) for part in ("whole", "copied", "cut"))
        own = -(-n // (shard * r.align)) * r.align  # padded to equal shards
        visits, often = u.number * r.micro, r.zero >= 2 or r.exact
        for when, calls in [(f" in the {w}", visits) for w in u.writes] if often else [("", u.number)]:
            what = f"gradients of the {u.name}{when}"
            if r.sequence:
                whole = u.elements("whole", r.align) * r.bytes.grad
                yield "tp", "all_reduce", f"{what}: those held whole, sum over rows", calls, whole
            copied = u.elements("copied", r.align)
            yield "kv", "all_reduce", f"{what}: kv heads, sum over copies", calls, copied * r.bytes.grad
            if not r.exact:
                yield "shard", "reduce_scatter", what, calls, own * shard * r.bytes.grad
        what, n_bytes = f"gradients of the {u.name}", own * r.bytes.grad
        if r.exact:
            replica = r.sizes["replica"]
            yield "shard", "send", f"{what}, to every other shard", u.number * (shard - 1), n_bytes
            yield "replica", "send", f"{what}, by doubling", u.number * (replica.bit_length() - 1), n_bytes
        else:
            yield "replica", "all_reduce", what, u.number, n_bytes
        if u.name == "embedding":
            yield "tied", "all_reduce", "gradients of the tied embedding", 1, own * r.bytes.grad
        for when, calls in [(f" in the {w}", visits) for w in u.reads] if r.zero == 3 else [("", u.number)]:
            what, n_bytes = f"parameters of the {u.name}{when}", own * shard * r.bytes.param
            yield "shard", "all_gather", what, calls, n_bytes


def _update(r: _Rank) -> Iterator[Entry]:
    """What optimizers that look at whole tensors add up, in a call for each unit."""
    for axis, u in ((axis, u) for axis in ("shard", "tp") for u in r.units):
        matrices = sum(math.prod(t.shape) for t in u.tensors if len(t.shape) == 2 and u.name == "blocks")
        if r.optimizer in ("lamb", "adafactor"):
            yield axis, "all_reduce", f"norms of the {u.name}", u.number, 2 * _SCALAR * len(u.tensors)
        if r.optimizer == "adafactor":
            sides = sum(sum(t.shape) for t in u.tensors)
            yield axis, "all_reduce", f"rows and columns of the {u.name}", u.number, sides * r.bytes.wide
        if r.optimizer == "muon":
            yield _summed(r, axis, f"matrices of the {u.name}", u.number, matrices * r.bytes.wide)


def _summed(r: _Rank, axis: str, what: str, calls: int, n_bytes: int) -> Entry:
    """A sum over an axis: a collective, but where run.exact adds up gradients messages, by doubling."""
    if r.exact and axis == "shard":
        return axis, "send", f"{what}, by doubling", calls * (r.sizes[axis].bit_length() - 1), n_bytes
    return axis, "all_reduce", what, calls, n_bytes


def _scalars(r: _Rank) -> Iterator[Entry]:
    n_squares, n_losses = (_DIGITS, r.sizes["dp"] * r.micro) if r.exact else (1, 1)
    for axis in ("shard", "tp", "pp"):
        yield _summed(r, axis, "squared norm of the gradients", 1, n_squares * _SCALAR)
    for axis in ("pp", "dp"):
        yield axis, "all_reduce", "loss", 1, n_losses * _SCALAR
    yield "world", "all_reduce", "whether a gradient overflowed", 1, _SCALAR
    for axis in ("dp", "tp"):
        yield axis, "all_reduce", "largest magnitudes of what is 8 bits", 1, 4 * r.n_scaled
