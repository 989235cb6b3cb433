"""The collectives, hop by hop.

Rank r brings to slice c the number (c + 1) 10^r. So the digit of a number says which slice it is, and the
places that have the digit whose parts are in it: 3033 is slice 2 with the parts of ranks 0, 1 and 3.
"""

from math import ceil, log2

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.study.algorithms import (
    all_to_all,
    halving_doubling,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
)
from minitrain.study.algorithms.hop import Hop, Hops, finish
from minitrain.study.lectures.costs import compare
from minitrain.study.page import Counted, Page

DIGITS = (
    "Rank r brings to slice c the number (c + 1) 10^r: its digit says which slice it is, and the places that "
    "have the digit, from the right, whose parts are in it."
)
START = Hop()


def parts(comm: Comm) -> Array:
    """What this rank brings: one element for each slice."""
    numbers: Array = np.arange(1.0, comm.size + 1) * 10**comm.rank
    return numbers


def show(page: Page, hops: Hops, buffer: Array, part: str = "") -> int:
    """A screen for each hop: what moved, and what every rank has then. Returns the number of hops."""
    n_hops = 0
    for hop in hops:
        n_hops += 1
        page.step(f"{part}hop {n_hops}")
        verb = "adds" if hop.added else "gets"
        sends = "" if hop.to is None else f"{name(hop.sent, buffer)} to rank {hop.to}"
        gets = "" if hop.source is None else f"{name(hop.received, buffer)} from rank {hop.source}"
        page.ranks(sends=sends, **{verb: gets}, then_holds=marked(buffer, hop))
    return n_hops


def name(elements: slice, buffer: Array) -> str:
    """Slices by number; there is an element in each."""
    if elements == slice(0, buffer.size):
        return "all"
    last = f"-{elements.stop - 1}" if elements.stop - elements.start > 1 else ""
    return f"slice{'s'[: bool(last)]} {elements.start}{last}"


def marked(buffer: Array, hop: Hop = START) -> str:
    """The numbers of a buffer: in brackets what has come in this hop, a dot where there is nothing yet."""
    width, cells = buffer.size, []
    for i, value in enumerate(buffer):
        text = (f"{value:.0f}" if value else ".").rjust(width)  # a digit a rank
        cells.append(f"[{text}]" if hop.received.start <= i < hop.received.stop else f" {text} ")
    return "".join(cells)


def study_tree_broadcast(page: Page, comm: Comm) -> None:
    n = comm.size
    page.claim(
        "Broadcast along a tree",
        "A broadcast gives everyone what one rank has. In a tree all who have it pass it on at the same "
        f"time, so that {ceil(log2(n))} = ceil(log2 {n}) hops reach {n} ranks; one rank alone would need "
        f"{n - 1}.",
    )
    counted, buffer = Counted(comm), parts(comm) if comm.rank == 0 else np.zeros(n)
    page.ranks(at_first=marked(buffer))
    n_hops = show(page, tree_broadcast.broadcast(counted.comm, buffer), buffer)

    page.step("what came of it")
    expected = parts(comm) if comm.rank == 0 else np.zeros(n)
    comm.broadcast(expected, 0)
    page.same("every rank has what the communicator's own broadcast gives it", buffer, expected)
    page.check(f"{n_hops} hops = ceil(log2 {n})", n_hops == ceil(log2(n)))
    sent = np.array([counted.take()])
    comm.all_reduce(sent)
    page.check(
        f"all ranks together sent {sent[0]} bytes, counted; (n - 1) x {buffer.nbytes} = "
        f"{(n - 1) * buffer.nbytes}: everyone but the root must get the buffer once, however it is done",
        sent[0] == (n - 1) * buffer.nbytes,
    )
    page.loosely(
        "a broadcast costs log n",
        f"That counts hops. Each moves the whole buffer, so for large buffers the time is {n_hops} times "
        "that of one message; a scatter followed by an all-gather then does better.",
    )
    compare(page, comm, "tree-broadcast")


def study_reduce_scatter(page: Page, comm: Comm) -> None:
    n = comm.size
    page.claim(
        "Reduce-scatter in a ring",
        "A reduce-scatter adds up the buffers of all ranks and leaves each rank one slice of the sum. In a "
        "ring every slice goes once around, and each rank adds its own part as it passes.",
    )
    counted, buffer = Counted(comm), parts(comm)
    page.say(DIGITS)
    page.ranks(at_first=marked(buffer))
    n_hops = show(page, ring_reduce_scatter.reduce_scatter(counted.comm, buffer), buffer)

    page.step("what came of it")
    own, expected = buffer[comm.rank : comm.rank + 1], np.empty(1)
    page.ranks(own_slice=own)
    comm.reduce_scatter(parts(comm), expected)
    page.same("rank r has slice r as the communicator's own reduce_scatter gives it", own, expected)
    page.check(f"{n_hops} hops = n - 1", n_hops == n - 1)
    formula = ring_bytes("reduce_scatter", buffer.nbytes, n)
    page.sent("in these hops", counted.take(), f"(n - 1)/n of {buffer.nbytes}", formula)
    page.loosely(
        "the sums are scattered",
        "No rank ever had all the sums: each slice is complete only where it ends. "
        "Nobody scatters anything afterwards.",
    )
    compare(page, comm, "reduce-scatter")


def study_all_gather(page: Page, comm: Comm) -> None:
    n = comm.size
    page.claim(
        "All-gather in a ring",
        "An all-gather puts the slices of all ranks one after another, on every rank. In a ring each rank "
        "passes on what it got last, so that no slice is sent twice by the same rank.",
    )
    counted, buffer = Counted(comm), np.zeros(n)
    buffer[comm.rank] = parts(comm)[comm.rank]
    page.ranks(at_first=marked(buffer))
    n_hops = show(page, ring_all_gather.all_gather(counted.comm, buffer), buffer)

    page.step("what came of it")
    expected = np.empty(n)
    comm.all_gather(parts(comm)[comm.rank : comm.rank + 1], expected)
    page.same("every rank has what the communicator's own all_gather gives it", buffer, expected)
    page.check(f"{n_hops} hops = n - 1", n_hops == n - 1)
    formula = ring_bytes("all_gather", buffer.nbytes, n)
    page.sent("in these hops", counted.take(), f"(n - 1)/n of {buffer.nbytes}", formula)
    page.loosely(
        "everyone sends its slice to everyone",
        f"In the ring a rank talks to two neighbours only. It sends {n - 1} slices, of which one is its own.",
    )
    compare(page, comm, "all-gather")


def study_ring_all_reduce(page: Page, comm: Comm) -> None:
    n = comm.size
    whole = parts(comm).nbytes
    page.claim(
        "All-reduce in a ring",
        "An all-reduce is a reduce-scatter and an all-gather. In a ring both together send 2(n - 1)/n of the "
        f"buffer: here {2 * (n - 1) / n:.4g} of it, and never more than twice, however many ranks there are.",
    )
    counted, buffer = Counted(comm), parts(comm)
    page.say(DIGITS)
    page.ranks(at_first=marked(buffer))
    page.say("In the first half, the reduce-scatter, slices are added up as they go around.")
    hops = ring_reduce_scatter.reduce_scatter(counted.comm, buffer)
    first = show(page, hops, buffer, "reduce-scatter, ")
    page.say(
        "Now rank r has the sum of slice r. In the second half, the all-gather, these go around once more."
    )
    half = counted.take()
    second = show(page, ring_all_gather.all_gather(counted.comm, buffer), buffer, "all-gather, ")

    page.step("what came of it")
    page.ranks(result=buffer)
    expected, once_more = parts(comm), parts(comm)
    comm.all_reduce(expected)
    page.same("every rank has what the communicator's own all_reduce gives it", buffer, expected)
    finish(ring_all_reduce.all_reduce(comm, once_more))
    page.same(
        "and what ring_all_reduce.py gives, which is the two halves one after the other", buffer, once_more
    )
    page.check(f"{first} + {second} hops = 2(n - 1)", first + second == 2 * (n - 1))
    page.sent("in the first half", half, f"(n - 1)/n of {whole}", ring_bytes("reduce_scatter", whole, n))
    both = half + counted.take()
    page.sent("in both", both, f"2(n - 1)/n of {whole}", ring_bytes("all_reduce", whole, n))
    page.loosely(
        "all ranks exchange their gradients",
        f"A rank sends {both} bytes in all, to one neighbour; every pair exchanging whole buffers would take "
        f"{(n - 1) * whole} from each rank.",
    )
    compare(page, comm, "ring-all-reduce")


def study_halving_doubling(page: Page, comm: Comm) -> None:
    n, levels = comm.size, int(log2(comm.size))
    whole = parts(comm).nbytes
    page.claim(
        "All-reduce by recursive halving and doubling",
        f"The same all-reduce in 2 log2(n) = {2 * levels} hops, not 2(n - 1) = {2 * (n - 1)}, and with as "
        "many bytes as a ring: partners exchange halves of what they still care for, then quarters, and so "
        "on, and back again.",
    )
    counted, buffer = Counted(comm), parts(comm)
    page.say(DIGITS)
    page.ranks(at_first=marked(buffer))
    page.say(
        "The partner is the rank whose number differs in one bit: first the highest bit, at last the lowest."
    )
    hops = halving_doubling.reduce_scatter(counted.comm, buffer)
    first = show(page, hops, buffer, "halving, ")
    page.say(
        "Now rank r has the sum of slice r. The same partners again, the nearest first: what each has "
        "complete doubles with every hop."
    )
    second = show(page, halving_doubling.all_gather(counted.comm, buffer), buffer, "doubling, ")

    page.step("what came of it")
    page.ranks(result=buffer)
    expected = parts(comm)
    comm.all_reduce(expected)
    page.same("every rank has what the communicator's own all_reduce gives it", buffer, expected)
    page.check(f"{first} + {second} hops = 2 log2(n)", first + second == 2 * levels)
    formula = ring_bytes("all_reduce", whole, n)
    page.sent("in both halves", counted.take(), f"2(n - 1)/n of {whole}", formula)
    page.loosely(
        "fewer hops are faster",
        "They are where alpha counts: for small buffers. The bytes are the ring's, and a ring only ever "
        "talks to neighbours, which many networks do best.",
    )
    compare(page, comm, "halving-doubling")


def study_all_to_all(page: Page, comm: Comm) -> None:
    n = comm.size
    page.claim(
        "All-to-all by exchange in pairs",
        "In an all-to-all every rank has a slice for every other: a transposition of the matrix whose rows "
        "are the ranks. It is what expert parallelism does with tokens, and what changes one cut of a "
        "tensor into another.",
    )
    counted, source, target = Counted(comm), parts(comm), np.zeros(n)
    page.say(
        "Rank r has for rank c the number (c + 1) 10^r: the digit says for whom it is, the place from whom."
    )
    page.ranks(at_first=marked(source))
    hops = all_to_all.all_to_all(counted.comm, source, target)
    n_hops = show(page, hops, target)

    page.step("what came of it")
    gathered = np.empty(n * n)
    comm.all_gather(source, gathered)
    page.same(
        "rank r has column r of what the communicator's own all_gather makes of all rows",
        target,
        gathered.reshape(n, n)[:, comm.rank],
    )
    page.check(f"{n_hops} hops = n - 1", n_hops == n - 1)
    formula = (n - 1) * source.nbytes // n
    page.sent("in these hops", counted.take(), f"(n - 1)/n of {source.nbytes}", formula)
    page.loosely(
        "an all-to-all is an all-gather of which one keeps a part",
        f"The result is the same, but the all-gather of all rows would send {(n - 1) * source.nbytes} bytes "
        f"from each rank, {n} times as many.",
    )
    compare(page, comm, "all-to-all")
