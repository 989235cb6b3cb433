"""Communicators within one process."""

import threading

import numpy as np
import pytest
from contract import check_contract

from minitrain.comm.agree import agree, broadcast_text
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import PeerLostError, ThreadComm, run_threads
from minitrain.comm.traced import ByteCounter, Event, traced
from minitrain.errors import DataError, MinitrainError

LIMIT = 60.0


def test_single_keeps_the_contract() -> None:
    check_contract(SingleComm())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_threads_keep_the_contract(n: int) -> None:
    run_threads(n, check_contract, LIMIT)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_traced_keeps_the_contract(n: int) -> None:
    run_threads(n, lambda world: check_contract(traced(world, ByteCounter())), LIMIT)


def test_threads_complete_a_send_only_when_it_was_received() -> None:
    received = threading.Event()

    def rank_main(world: ThreadComm) -> bool:
        if world.rank == 0:
            world.send(np.zeros(3), 1)
            return received.is_set()
        received.set()
        world.recv(np.empty(3), 0)
        return True

    assert run_threads(2, rank_main, LIMIT) == [True, True]


def test_the_first_error_ends_all_threads() -> None:
    def rank_main(world: ThreadComm) -> None:
        if world.rank == 1:
            raise ValueError("rank 1 fails")
        world.all_reduce(np.zeros(3)) if world.rank else world.recv(np.empty(3), 1)

    with pytest.raises(ValueError, match="rank 1 fails"):
        run_threads(4, rank_main)


def test_a_deadlock_ends_at_the_limit() -> None:
    with pytest.raises(PeerLostError):
        run_threads(2, lambda world: world.recv(np.empty(1), 1 - world.rank), 0.2)
    with pytest.raises(PeerLostError):
        run_threads(2, lambda world: world.barrier() if world.rank else None, 0.2)


def test_ranks_that_bring_different_buffers_are_told() -> None:
    with pytest.raises(AssertionError, match="different buffers"):
        run_threads(2, lambda world: world.all_reduce(np.zeros(3 + world.rank)), LIMIT)
    with pytest.raises(AssertionError, match="different buffers"):
        run_threads(
            2, lambda world: world.all_reduce(np.zeros(4, np.float32 if world.rank else np.int32)), LIMIT
        )


def test_traced_events() -> None:
    """Verb, axis, group, dtype, elements, bytes, and what a ring sends, in closed form for 4 ranks."""
    events: list[Event] = []

    def rank_main(world: ThreadComm) -> None:
        comm = traced(world, events.append if world.rank == 3 else lambda event: None)
        line = comm.cart((2, 2)).sub((False, True), "line")
        comm.all_reduce(np.zeros(100, np.float32))
        comm.all_reduce(np.zeros(1))
        comm.reduce_scatter(np.zeros(8), np.zeros(2))
        comm.all_gather(np.zeros(2), np.zeros(8))
        line.broadcast(np.zeros(3), 0)
        comm.start_send(np.zeros(5), (comm.rank + 1) % 4)
        comm.recv(np.zeros(5), (comm.rank - 1) % 4)

    run_threads(4, rank_main, LIMIT)
    world, line = (0, 1, 2, 3), (2, 3)
    assert events == [
        Event("all_reduce", "world", world, "float32", 100, 400, 600),
        Event("all_reduce", "world", world, "float64", 1, 8, 12),
        Event("reduce_scatter", "world", world, "float64", 8, 64, 48),
        Event("all_gather", "world", world, "float64", 8, 64, 48),
        Event("broadcast", "line", line, "float64", 3, 24, 24),
        Event("send", "world", world, "float64", 5, 40, 40),
    ]


def test_a_text_for_all_and_an_error_for_all() -> None:
    def rank_main(world: ThreadComm) -> str:
        text = broadcast_text(world, "Psalm 23, “still waters”" if world.rank == 0 else None)
        agree(world, None)
        with pytest.raises(MinitrainError) as caught:
            agree(
                world,
                DataError("no file", f"rank {world.rank}", "give one") if world.rank in (1, 2) else None,
            )
        assert caught.value.known_everywhere and caught.value.exit_code == 3
        assert str(caught.value.problems[0]) == "no file; rank 1; give one"
        return text

    assert run_threads(3, rank_main, LIMIT) == ["Psalm 23, “still waters”"] * 3
