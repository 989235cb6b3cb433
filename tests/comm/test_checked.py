"""Ranks that part ways are told so, all of them, before any data moves; and nothing else changes."""

from collections.abc import Callable

import numpy as np
import pytest
from contract import check_contract
from layouts import GPT2, rank_run, run_layout, tiny

from minitrain.comm.checked import CheckedComm, checked
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import name_ranks, who_says
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Event
from minitrain.errors import InternalError

LIMIT = 60.0


@pytest.mark.parametrize("n", [1, 2, 4])
def test_keeps_the_contract(n: int) -> None:
    run_threads(n, lambda world: check_contract(checked(world)), LIMIT)


@pytest.mark.mpi(min_size=2)
def test_keeps_the_contract_over_mpi() -> None:
    from minitrain.comm.mpi import world

    check_contract(checked(world()))
    check_contract(checked(world(synchronous_sends=True)))


def test_a_group_of_one_is_left_as_it_is() -> None:
    single = SingleComm()
    assert checked(single) is single


def zeros(n: int = 8, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(n, dtype)


Verb = Callable[[Comm], object]


def error_of(action: Callable[[], object]) -> InternalError | None:
    try:
        action()
    except InternalError as error:
        return error
    return None


# What ranks 0 and 2 do, what rank 1 does, and how the error tells them apart.
DIFFERENCES: dict[str, tuple[Verb, Verb, str]] = {
    "size": (
        lambda c: c.all_reduce(zeros()),
        lambda c: c.all_reduce(zeros(7)),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: all_reduce(sum) of 7 float32",
    ),
    "dtype": (
        lambda c: c.all_reduce(zeros()),
        lambda c: c.all_reduce(zeros(8, np.int32)),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: all_reduce(sum) of 8 int32",
    ),
    "reduction": (
        lambda c: c.all_reduce(zeros()),
        lambda c: c.all_reduce(zeros(), "max"),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: all_reduce(max) of 8 float32",
    ),
    "verb": (
        lambda c: c.all_reduce(zeros()),
        lambda c: c.broadcast(zeros(), 0),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: broadcast from rank 0 of 8 float32",
    ),
    "root": (
        lambda c: c.broadcast(zeros(), 0),
        lambda c: c.broadcast(zeros(), 1),
        "ranks 0, 2: broadcast from rank 0 of 8 float32, rank 1: broadcast from rank 1 of 8 float32",
    ),
    "missing": (
        lambda c: (c.all_reduce(zeros()), c.barrier()),
        lambda c: c.barrier(),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: barrier",
    ),
    "order": (
        lambda c: (c.all_reduce(zeros(6)), c.all_reduce(zeros())),
        lambda c: (c.all_reduce(zeros()), c.all_reduce(zeros(6))),
        "ranks 0, 2: all_reduce(sum) of 6 float32, rank 1: all_reduce(sum) of 8 float32",
    ),
    "not contiguous": (
        lambda c: c.all_reduce(zeros()),
        lambda c: c.all_reduce(zeros(16)[::2]),
        "ranks 0, 2: all_reduce(sum) of 8 float32, rank 1: all_reduce(sum) of 8 float32, not C-contiguous",
    ),
    "shard": (
        lambda c: c.reduce_scatter(zeros(6), zeros(2)),
        lambda c: c.reduce_scatter(zeros(6), zeros(3)),
        "ranks 0, 2: reduce_scatter of 6 float32, "
        "rank 1: reduce_scatter of 6 float32 with a shard of 3 float32 on each of 3 ranks",
    ),
    "the same fault on all": (
        lambda c: c.all_gather(zeros(2), zeros(8)),
        lambda c: c.all_gather(zeros(2), zeros(8)),
        "ranks 0-2: all_gather of 8 float32 with a shard of 2 float32 on each of 3 ranks",
    ),
    "group": (
        lambda c: c.split(0, "a"),
        lambda c: c.cart((3,)),
        "ranks 0, 2: split into a, rank 1: cart of 3",
    ),
}


@pytest.mark.parametrize("theirs, mine, told", DIFFERENCES.values(), ids=DIFFERENCES)
def test_all_ranks_are_told_of_a_difference(theirs: Verb, mine: Verb, told: str) -> None:
    def rank_main(world: Comm) -> str:
        comm = checked(world)
        comm.barrier()
        error = error_of(lambda: (mine if world.rank == 1 else theirs)(comm))
        assert error and error.known_everywhere and error.exit_code == 6
        return str(error)

    messages = run_threads(3, rank_main, LIMIT)
    assert len(set(messages)) == 1, "one error on all ranks"
    assert told in messages[0] and "; call 2 over world, ranks 0-2; " in messages[0]


def test_no_data_move_before_the_difference_is_known() -> None:
    def rank_main(world: Comm) -> bool:
        buffer = np.full(3 + world.rank, float(world.rank))
        assert error_of(lambda: checked(world).all_reduce(buffer))
        return bool(np.all(buffer == world.rank))

    assert all(run_threads(2, rank_main, LIMIT))


def test_a_group_that_is_not_the_world_has_an_error_that_others_do_not_know() -> None:
    def rank_main(world: Comm) -> None:
        half = checked(world).cart((2, 2)).sub((False, True), "half")
        assert isinstance(half, CheckedComm)
        if world.rank < 2:
            half.all_reduce(zeros())
            return
        error = error_of(lambda: half.barrier() if half.rank == 0 else half.all_reduce(zeros()))
        assert error and "rank 2: barrier, rank 3: all_reduce" in str(error)
        assert (error.known_everywhere, error.told_by) == (False, 2)

    run_threads(4, rank_main, LIMIT)


MESSAGES: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "shape": (
        np.zeros((8, 4)),
        np.empty((4, 8)),
        "rank 0 sends message 1 of 8 x 4 float64, but rank 1 expects message 1 of 4 x 8 float64",
    ),
    "size": (np.zeros(8), np.empty(9), "but rank 1 expects message 1 of 9 float64"),
    "dtype": (zeros(), np.empty(8, np.int32), "rank 0 sends message 1 of 8 float32"),
}


@pytest.mark.parametrize("sent, expected, told", MESSAGES.values(), ids=MESSAGES)
def test_the_receiver_sees_a_message_of_another_kind(
    sent: np.ndarray, expected: np.ndarray, told: str
) -> None:
    def rank_main(world: Comm) -> None:
        comm = checked(world)
        if comm.rank == 0:
            comm.start_send(sent, 1)
            return
        error = error_of(lambda: comm.recv(expected, 0))
        assert error and told in str(error)

    run_threads(2, rank_main, LIMIT)


def test_the_traffic_of_the_check_is_not_in_the_ledger() -> None:
    """Ledgers are outside of the check: they see what a run without it would send."""
    config = tiny(GPT2, dp=2, tp=2, pp=2, zero=3)

    def events_of(wrap: Callable[[Comm], Comm]) -> list[list[Event]]:
        def rank_main(world: Comm) -> list[Event]:
            events: list[Event] = []
            rank_run(wrap(world), config, 1, events.append)
            return events

        return run_threads(8, rank_main, LIMIT)

    assert events_of(checked) == events_of(lambda world: world)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipeline_with_headers_runs_and_computes_the_same(schedule: str) -> None:
    """Sends on threads wait for their receive: headers that could deadlock would."""
    config = tiny(GPT2, pp=4, schedule=schedule)
    losses = run_threads(4, lambda world: rank_run(checked(world), config, 2)[0], LIMIT)
    assert losses[0] == run_layout(config, 2).losses


def test_ranks_in_words() -> None:
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([5, 0, 2, 3]) == "ranks 0, 2-3, 5"
    assert name_ranks([0, 1]) == "ranks 0-1"
    many = {rank: "a" if rank % 2 else f"text {rank}" for rank in range(100)}
    assert who_says(many, most=2) == f"{name_ranks(range(1, 100, 2))}: a, rank 0: text 0, " + (
        "49 more ranks: something else again"
    )
