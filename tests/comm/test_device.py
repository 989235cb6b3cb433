"""A communicator for arrays of the host and of a device: each kind takes its own way, in every group."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from comm.fake_device import DeviceArray, LateDevice, OnDevice, device_array
from comm.fake_nccl import FakeNccl
from contract import check_contract

from minitrain.comm.checked import checked
from minitrain.comm.device import Connect, DeviceWorld
from minitrain.comm.interface import Comm
from minitrain.comm.nccl import Nccl
from minitrain.comm.single import SingleComm
from minitrain.comm.staged import Staging
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.comm.traced import ByteCounter, Event, traced
from minitrain.comm.tree import tree_ordered

LIMIT = 60.0


def connector(device: LateDevice, fake: FakeNccl | None) -> Connect:
    """Over NCCL, or through page-locked memory."""
    return Nccl(device, fake).connect if fake else Staging(device).connect


def on_device(world: ThreadComm, fake: FakeNccl | None) -> OnDevice:
    device = LateDevice()
    return OnDevice(DeviceWorld(world, connector(device, fake)), device)


@pytest.mark.parametrize("transport", ["nccl", "staged"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_device_arrays_keep_the_contract(n: int, transport: str) -> None:
    fake = FakeNccl(LIMIT) if transport == "nccl" else None
    run_threads(n, lambda world: check_contract(on_device(world, fake)), LIMIT)


@pytest.mark.parametrize("transport", ["nccl", "staged"])
def test_and_so_they_do_under_every_wrapper(transport: str) -> None:
    fake = FakeNccl(LIMIT) if transport == "nccl" else None

    def rank_main(world: ThreadComm) -> None:
        device = LateDevice()
        connect = connector(device, fake)
        inner = DeviceWorld(world, connect)
        check_contract(OnDevice(checked(inner), device))
        check_contract(OnDevice(traced(checked(inner), ByteCounter()), device))
        check_contract(tree_ordered(OnDevice(inner, device)))

    run_threads(4, rank_main, LIMIT)


class NoTransport:
    """Of a group in which no device array moves."""

    def __init__(self, host: Comm) -> None:
        assert host.size > 1
        self.host = host

    def __getattr__(self, verb: str) -> Any:
        raise AssertionError(f"{verb} of a device array over {self.host.name}")


def test_host_arrays_take_the_host_communicator() -> None:
    run_threads(4, lambda world: check_contract(DeviceWorld(world, NoTransport)), LIMIT)


def test_every_group_has_a_transport_made_by_all_its_members() -> None:
    """When the group is made: before a first message, of which but two members know."""

    def rank_main(world: ThreadComm) -> list[tuple[str, tuple[int, ...]]]:
        made = []

        def connect(host: Comm) -> Any:
            made.append((host.name, host.members))
            host.barrier()
            return NoTransport(host)

        cart = DeviceWorld(world, connect).cart((2, 2))
        cart.sub((True, False), "column")
        row = cart.sub((False, True), "row")
        row.split(None, "alone")
        row.split(0, "pair")
        return made

    assert run_threads(4, rank_main, LIMIT)[3] == [
        ("world", (0, 1, 2, 3)),
        ("column", (1, 3)),
        ("row", (2, 3)),
        ("pair", (2, 3)),
    ]


def test_arrays_without_elements_do_not_move() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm = DeviceWorld(world, NoTransport)
        none: Any = device_array()
        comm.all_reduce(none)
        comm.all_reduce(none, "max")
        comm.reduce_scatter(none, none)
        comm.all_gather(none, none)
        comm.broadcast(none, 0)
        comm.start_send(none, 1 - comm.rank).wait()
        comm.send(none, 1 - comm.rank)
        comm.recv(none, 1 - comm.rank)

    run_threads(2, rank_main, LIMIT)


def test_a_rank_alone_needs_no_transport() -> None:
    def rank_main(world: Comm) -> None:
        check_contract(OnDevice(DeviceWorld(world, NoTransport), LateDevice()))

    rank_main(SingleComm())
    run_threads(1, rank_main, LIMIT)


def test_buffers_of_a_verb_are_on_one_side_and_contiguous() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm = DeviceWorld(world, NoTransport)
        with pytest.raises(AssertionError, match="on the host, the other on the device"):
            comm.all_gather(np.zeros(1), device_array(0, 0))
        with pytest.raises(AssertionError, match="on the host, the other on the device"):
            comm.reduce_scatter(device_array(0, 0), np.zeros(1))
        strided: Any = DeviceArray(np.zeros(4)[::2])
        for verb in (comm.all_reduce, lambda b: comm.send(b, 1), lambda b: comm.recv(b, 1)):
            with pytest.raises(AssertionError, match="C-contiguous"):
                verb(strided)
        with pytest.raises(AssertionError, match="C-contiguous"):
            comm.all_gather(strided, device_array(0, 0, 0, 0))

    run_threads(2, rank_main, LIMIT)


def test_the_ledger_sees_device_arrays() -> None:
    def rank_main(world: ThreadComm) -> list[Event]:
        events: list[Event] = []
        device = LateDevice()
        comm = traced(DeviceWorld(world, Staging(device).connect), events.append)
        comm.all_reduce(device_array(*range(100)))
        comm.start_send(device_array(1, 2, 3), 1 - comm.rank)
        comm.recv(device_array(0, 0, 0), 1 - comm.rank)
        return events

    assert run_threads(2, rank_main, LIMIT)[0] == [
        Event("all_reduce", "world", (0, 1), "float32", 100, 400, 400),
        Event("send", "world", (0, 1), "float32", 3, 12, 12),
    ]


class HostWorld(SingleComm):
    """A world of two whose other rank does not exist, and which remembers its end."""

    size = 2
    ended: Sequence[int] = ()

    def abort(self, exit_code: int) -> None:
        self.ended = (exit_code,)


def test_abort_is_passed_on() -> None:
    host = HostWorld()
    DeviceWorld(host, NoTransport).abort(75)
    assert host.ended == (75,)
