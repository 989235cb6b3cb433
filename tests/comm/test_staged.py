"""Device arrays through page-locked memory, on a device whose copies happen only when they are waited for."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comm.fake_device import LateDevice, device_array

from minitrain.comm.device import DeviceWorld
from minitrain.comm.interface import Reduction
from minitrain.comm.staged import Staging
from minitrain.comm.threads import ThreadComm, run_threads

LIMIT = 60.0


def staged(world: ThreadComm) -> tuple[DeviceWorld, LateDevice]:
    device = LateDevice()
    return DeviceWorld(world, Staging(device).connect), device


def test_page_locked_memory_is_used_again_only_after_its_copy() -> None:
    """Two messages through the same memory; nobody but the second one waits for the first's last copy."""

    def rank_main(world: ThreadComm) -> None:
        comm, device = staged(world)
        first, second = device_array(0, 0), device_array(0, 0)
        if comm.rank == 0:
            comm.send(device_array(1, 2), 1)
            comm.send(device_array(3, 4), 1)
            return
        comm.recv(first, 0)
        comm.recv(second, 0)
        assert device.n_pinned == 1
        device.synchronize()
        assert (first.inside.tolist(), second.inside.tolist()) == ([1, 2], [3, 4])

    run_threads(2, rank_main, LIMIT)


def test_a_started_send_keeps_its_memory_until_it_has_arrived() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, device = staged(world)
        if comm.rank == 0:
            buffer = device_array(1, 2)
            sent = [comm.start_send(buffer, 1)]
            buffer.inside[...] = 3, 4  # the copy in page-locked memory is what is on its way
            sent.append(comm.start_send(buffer, 1))
            comm.all_reduce(device_array(7, 7))
            assert device.n_pinned == 3, "two are on their way, and one is for the sum"
            for handle in sent:
                handle.wait()
                handle.wait()  # gives back nothing twice
            comm.all_reduce(device_array(7, 7))
            for i in (5, 6, 7):
                comm.start_send(device_array(i, i), 1)
            assert device.n_pinned == 3, "all three were free again, once each"
            return
        got: list[Any] = [device_array(0, 0) for _ in range(5)]
        comm.all_reduce(got[4])
        for buffer in got[:2]:
            comm.recv(buffer, 0)
        comm.all_reduce(got[4])
        for buffer in got[2:]:
            comm.recv(buffer, 0)
        device.synchronize()
        assert [buffer.inside.tolist() for buffer in got] == [[1, 2], [3, 4], [5, 5], [6, 6], [7, 7]]

    run_threads(2, rank_main, LIMIT)


def test_a_verb_waits_once_and_takes_no_more_memory_the_second_time() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, device = staged(world)
        whole, shard = device_array(1, 2, 3, 4), device_array(5, 6)
        verbs = [
            lambda: comm.all_reduce(whole),
            lambda: comm.reduce_scatter(whole, shard),
            lambda: comm.all_gather(shard, whole),
            lambda: comm.broadcast(whole, 0),
            lambda: comm.send(whole, 1) if comm.rank == 0 else comm.recv(whole, 0),
        ]
        for verb in verbs:
            verb()
        n_pinned = device.n_pinned
        for verb in verbs:
            before = device.n_synchronized
            verb()
            assert device.n_synchronized == before + 1
        assert device.n_pinned == n_pinned == 2

    run_threads(2, rank_main, LIMIT)


def test_the_root_of_a_broadcast_copies_nothing_back() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, device = staged(world)
        comm.broadcast(device_array(1, 2), 1)
        assert device.idle == (comm.rank == 1)

    run_threads(3, rank_main, LIMIT)


class AwareMpi:
    """An MPI of two ranks that knows the device: sees what it is given, and that the stream is at its end."""

    name, rank, size, members = "world", 0, 2, (0, 1)

    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self.seen: list[Any] = []

    def _see(self, *buffers: Any) -> None:
        assert self._device.n_synchronized == 1 and self._device.idle
        self._device.n_synchronized = 0
        self.seen = list(buffers)

    def all_reduce(self, buffer: Any, op: Reduction) -> None:
        self._see(buffer)

    def reduce_scatter(self, source: Any, shard: Any) -> None:
        self._see(source, shard)

    def all_gather(self, shard: Any, target: Any) -> None:
        self._see(shard, target)

    def broadcast(self, buffer: Any, root: int) -> None:
        self._see(buffer)

    def recv(self, buffer: Any, source: int) -> None:
        self._see(buffer)

    def start_send(self, buffer: Any, to: int) -> "AwareMpi":
        self._see(buffer)
        return self

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16, ml_dtypes.bfloat16])
def test_an_mpi_that_takes_device_arrays_gets_them(dtype: Any) -> None:
    """But for sums of 16-bit floats, which are computed by the host."""
    device = LateDevice()
    host: Any = AwareMpi(device)
    comm = DeviceWorld(host, Staging(device, direct=True).connect)
    whole, shard = device_array(1, 2, 3, 4, dtype=dtype), device_array(5, 6, dtype=dtype)
    comm.all_gather(shard, whole)
    assert host.seen == [shard, whole]
    for verb in (lambda: comm.broadcast(whole, 1), lambda: comm.send(whole, 1), lambda: comm.recv(whole, 1)):
        verb()
        assert host.seen == [whole]
    assert device.n_pinned == 0

    adds = [lambda: comm.all_reduce(whole), lambda: comm.all_reduce(whole, "max")]
    for verb in [*adds, lambda: comm.reduce_scatter(whole, shard)]:
        verb()
        on_host = {isinstance(buffer, np.ndarray) for buffer in host.seen}
        assert on_host == {np.dtype(dtype).itemsize == 2}
    device.synchronize()
    assert whole.inside.tolist() == [1, 2, 3, 4], "a sum that went through host memory came back"


@pytest.mark.mpi(min_size=2)
def test_contract_over_mpi() -> None:
    from comm.fake_device import OnDevice
    from contract import check_contract

    from minitrain.comm.mpi import world

    for synchronous_sends in (False, True):
        device = LateDevice()
        host = world(synchronous_sends)
        check_contract(OnDevice(DeviceWorld(host, Staging(device).connect), device))


def test_the_array_of_these_tests_is_not_numpys() -> None:
    """Else the transport would never be taken."""
    assert not isinstance(device_array(1), np.ndarray)
    with pytest.raises(TypeError):
        device_array(1) + np.ones(1)
