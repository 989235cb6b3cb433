"""Device arrays over a NCCL for threads, which is stricter than a GPU (fake_nccl.py). Above all: no pipeline
stands still.
"""

import gc
import inspect
import re
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comm.fake_device import Address, DeviceArray, LateDevice, OnDevice, device_array
from comm.fake_nccl import Communicator, FakeNccl, NcclError, StandstillError
from layouts import GPT2, LLAMA, LLAMA_TIED, assemble, assert_same, rank_run, run_layout, tiny

from minitrain.comm.checked import checked
from minitrain.comm.device import DeviceWorld
from minitrain.comm.interface import Comm
from minitrain.comm.nccl import TYPES, Nccl, NcclTransport, load, pointer
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.config import Config
from minitrain.errors import ConfigError, InternalError, MinitrainError, TryAgainError
from minitrain.parallel.outbox import Outbox
from minitrain.parallel.schedule import SCHEDULES, Kind, Schedule, forward_only

LIMIT = 60.0
SOON = 0.3  # seconds, where a standstill is expected

PIPELINES: dict[str, Schedule] = {**SCHEDULES, "forward_only": forward_only}


def over(fake: FakeNccl, world: ThreadComm) -> tuple[DeviceWorld, Nccl, LateDevice]:
    device = LateDevice()
    nccl = Nccl(device, fake)
    return DeviceWorld(world, nccl.connect), nccl, device


def plain(comm: Comm) -> Comm:
    return comm


def play(
    schedule: Schedule, n_stages: int, n_micro: int, fake: FakeNccl, wrap: Callable[[Comm], Comm] = plain
) -> None:
    """The messages of a step as `step.backpropagate` makes them, each of which says what it is."""

    def rank_main(world: ThreadComm) -> None:
        comm, _, device = over(fake, world)
        pp = OnDevice(wrap(comm), device)
        stage, outbox = pp.rank, Outbox(pp)

        def expect(source: int, micro: int, what: int) -> None:
            buffer = np.empty(3)
            pp.recv(buffer, source)
            assert buffer.tolist() == [source, micro, what]

        for kind, m in schedule(stage, n_stages, n_micro):
            match kind:
                case Kind.RECV_ACT:
                    expect(stage - 1, m, 1)
                case Kind.RECV_GRAD:
                    expect(stage + 1, m, 2)
                case Kind.SEND_ACT:
                    outbox.send(np.array([stage, m, 1.0]), stage + 1)
                case Kind.SEND_GRAD:
                    outbox.send(np.array([stage, m, 2.0]), stage - 1)
        outbox.flush()
        total = np.ones(1)
        pp.all_reduce(total)  # and all are in step at the end
        assert total[0] == n_stages

    run_threads(n_stages, rank_main, LIMIT)


@pytest.mark.parametrize("n_stages", range(1, 6))
@pytest.mark.parametrize("wrap", [plain, checked])
@pytest.mark.parametrize("name", PIPELINES)
def test_no_pipeline_stands_still(name: str, wrap: Callable[[Comm], Comm], n_stages: int) -> None:
    """Nor if the host sends a header with every message."""
    for n_micro in range(1, 10):
        play(PIPELINES[name], n_stages, n_micro, FakeNccl(), wrap)


def issued_at_once(self: NcclTransport, buffer: Any, to: int) -> Any:
    handle = start_send(self, buffer, to)
    handle.wait()
    return handle


def received_alone(self: NcclTransport, buffer: Any, source: int) -> None:
    held, self._held = self._held, type(self._held)()
    recv(self, buffer, source)
    self._held = held


start_send, recv = NcclTransport.start_send, NcclTransport.recv


@pytest.mark.parametrize("verb, other", [("start_send", issued_at_once), ("recv", received_alone)])
def test_messages_that_are_no_group_stand_still(
    verb: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why sends are held back: 1F1B without it. So the fake can tell."""
    monkeypatch.setattr(NcclTransport, verb, other)
    with pytest.raises(StandstillError, match="waits in"):
        play(SCHEDULES["1f1b"], 2, 4, FakeNccl(SOON))


def test_two_messages_to_a_peer_are_not_in_one_group() -> None:
    """Every rank starts two to the next, then receives two: if both left together with the first receive,
    that would wait for a receive that comes after it.
    """

    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        sent = [comm.start_send(device_array(i), (comm.rank + 1) % 3) for i in range(2)]
        for i in range(2):
            got = device_array(-1)
            comm.recv(got, (comm.rank - 1) % 3)
            assert got.inside[0] == i
        for handle in sent:
            handle.wait()

    fake = FakeNccl(SOON)
    run_threads(3, rank_main, LIMIT)


def test_what_is_held_goes_before_a_collective_in_its_order() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        got: list[Any] = [device_array(-1) for _ in range(3)]
        if comm.rank == 0:
            for i in range(3):
                comm.start_send(device_array(i), 1)
        else:
            for buffer in got:
                comm.recv(buffer, 0)
            assert [buffer.inside[0] for buffer in got] == [0, 1, 2]
        comm.all_reduce(got[0])

    fake = FakeNccl(5.0)
    run_threads(2, rank_main, LIMIT)


def test_a_buffer_lives_until_it_is_sent_and_no_longer() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        buffer: Any = device_array(1, 2)
        if comm.rank == 1:
            world.barrier()
            comm.recv(buffer, 0)
            return
        alive = weakref.ref(buffer)
        handle = comm.start_send(buffer, 1)
        del buffer
        gc.collect()
        assert alive() is not None
        world.barrier()
        handle.wait()
        gc.collect()
        assert alive() is None

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)


def test_calls_are_on_the_stream_of_the_device() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, nccl, device = over(fake, world)
        (group,) = nccl._groups.values()
        x, xx = device_array(1), device_array(1, 1)
        verbs: list[Callable[[], object]] = [
            lambda: comm.all_reduce(x),
            lambda: comm.reduce_scatter(xx, x),
            lambda: comm.all_gather(x, xx),
            lambda: comm.broadcast(x, 0),
            lambda: comm.send(x, 1) if comm.rank == 0 else comm.recv(x, 0),
        ]
        for stream, verb in enumerate(verbs, 100):
            group.communicator.streams.clear()
            device.stream = Address(stream)
            verb()
            assert group.communicator.streams == {stream}

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(dtype: np.dtype[Any]) -> None:
    """Each is added up and moved as what it is."""

    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        for op, expected in (("sum", 5), ("max", 3)):
            x: Any = device_array(2 + comm.rank, dtype=dtype)
            comm.all_reduce(x, op)
            assert x.inside.tolist() == [expected]
        shard, whole = device_array(2 + comm.rank, dtype=dtype), device_array(0, 0, dtype=dtype)
        comm.all_gather(shard, whole)
        assert whole.inside.tolist() == [2, 3]
        comm.send(whole, 1) if comm.rank == 0 else comm.recv(whole, 0)

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)


def test_sixteen_bits_are_added_up_as_floats_and_not_as_integers() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        for dtype in (np.float16, ml_dtypes.bfloat16):
            x: Any = device_array(0.5, -1.5, dtype=dtype)
            comm.all_reduce(x)
            assert x.inside.tolist() == [1.0, -3.0]

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)


def test_a_type_that_nccl_does_not_know_is_refused_before_anything_moves() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)
        x: Any = device_array(1, dtype=np.uint16)
        for verb in (comm.all_reduce, lambda b: comm.start_send(b, 0), lambda b: comm.recv(b, 0)):
            with pytest.raises(InternalError, match="NCCL knows no uint16; over world, ranks 0-1; "):
                verb(x)

    fake = FakeNccl(SOON)
    run_threads(2, rank_main, LIMIT)


def test_groups_of_the_same_ranks_share_a_communicator() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, nccl, _ = over(fake, world)
        cart = comm.cart((2, 2))
        dp, row, alone = cart.sub((True, True), "dp"), cart.sub((False, True), "row"), comm.split(None, "a")
        again = row.split(0, "again")
        for group in (dp, row, again, comm):
            x: Any = device_array(1)
            group.all_reduce(x)
            assert x.inside[0] == group.size
        assert alone.size == 1 and list(nccl._groups) == [(0, 1, 2, 3), row.members]

    fake = FakeNccl()
    run_threads(4, rank_main, LIMIT)
    assert [comm.size() for comm in fake.communicators] == [4] * 4 + [2] * 4


def test_an_asynchronous_error_is_told_with_its_axis() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, nccl, _ = over(fake, world)
        line = comm.cart((2, 2)).sub((False, True), "tp")
        line.cart((2,)).sub((True,), "kv")
        nccl.check()
        mine = nccl._groups[line.members].communicator
        mine.broken = 6
        ranks = "ranks 0-1" if world.rank < 2 else "ranks 2-3"
        told = f"a call that was under way: NCCL_ERROR_6; over tp and kv, {ranks}; restart from the last"
        with pytest.raises(TryAgainError, match=told):
            nccl.check()
        mine.broken = 5
        with pytest.raises(InternalError, match="this is a defect"):
            nccl.check()

    fake = FakeNccl()
    run_threads(4, rank_main, LIMIT)


def test_an_error_of_a_call_is_told_with_its_verb_and_axis() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, _, _ = over(fake, world)

        def fail(*_: object) -> None:
            raise NcclError(1)

        for name in ("allReduce", "recv"):
            setattr(fake.NcclCommunicator, name, fail)
        with pytest.raises(TryAgainError, match="in all_reduce: NCCL_ERROR_1; over world, ranks 0-1; "):
            comm.all_reduce(device_array(1))
        with pytest.raises(TryAgainError, match="in a message: NCCL_ERROR_1; over world, ranks 0-1; "):
            comm.recv(device_array(1), 1 - comm.rank)

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)


def test_a_rank_that_waits_is_let_go_by_abort() -> None:
    """As a watchdog's thread does it when another rank is gone."""

    def rank_main(world: ThreadComm) -> None:
        comm, nccl, _ = over(fake, world)
        comm.all_reduce(device_array(1))
        if comm.rank == 1:
            return
        threading.Timer(0.1, nccl.abort_all).start()
        comm.all_reduce(device_array(1))  # alone
        nccl.check()  # there is nothing left to ask
        with pytest.raises(MinitrainError):
            comm.all_reduce(device_array(1))

    fake = FakeNccl(10.0)
    run_threads(2, rank_main, LIMIT)


def test_close_destroys_all() -> None:
    def rank_main(world: ThreadComm) -> None:
        comm, nccl, _ = over(fake, world)
        comm.cart((2, 1)).sub((True, False), "dp")
        nccl.close()
        nccl.close()

    fake = FakeNccl()
    run_threads(2, rank_main, LIMIT)
    assert fake.communicators and not any(comm._alive for comm in fake.communicators)


def test_a_connection_that_fails_is_told() -> None:
    def refuse(*_: object) -> None:
        raise NcclError(2)

    def rank_main(world: ThreadComm) -> None:
        fake = SimpleNamespace(NcclCommunicator=refuse, NcclError=NcclError, get_unique_id=lambda: bytes(128))
        with pytest.raises(ConfigError, match="NCCL cannot connect: NCCL_ERROR_2; over world, ranks 0-1; "):
            DeviceWorld(world, Nccl(LateDevice(), fake).connect)

    run_threads(2, rank_main, LIMIT)


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nccl = SimpleNamespace(available=False)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nccl=nccl))
    with pytest.raises(ConfigError, match="there is no libnccl"):
        load()
    nccl.available = True
    assert load() is nccl


def test_pointer() -> None:
    numbers = np.arange(4.0)
    assert pointer(DeviceArray(numbers[1:])) == pointer(DeviceArray(numbers)) + 8  # type: ignore[arg-type]


LAYOUTS: dict[str, Config] = {
    "1f1b, tied, ZeRO 3": tiny(LLAMA_TIED, dp=2, tp=2, pp=2, zero=3, schedule="1f1b", sequence=True),
    "1f1b, four stages": tiny(LLAMA, dp=2, pp=4, schedule="1f1b"),
    "gpipe, tied, ZeRO 2": tiny(GPT2, dp=2, tp=1, pp=4, zero=2, schedule="gpipe"),
    "replica and shard": tiny(LLAMA, dp=4, tp=2, shard=2, zero=1),
}


@pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS)
def test_training_computes_the_same_as_on_one_rank(config: Config) -> None:
    """Whole steps, every array of them over NCCL: with all axes, nobody waits for ever."""

    def rank_main(world: ThreadComm) -> Any:
        comm, _, device = over(fake, world)
        return rank_run(OnDevice(checked(comm), device), config, 3, compared=True)

    fake, parallel = FakeNccl(), config.parallel
    assert parallel.dp and parallel.tp and parallel.pp
    ranks = run_threads(parallel.dp * parallel.tp * parallel.pp, rank_main, LIMIT)
    ours = run_layout(config)
    grads = [assemble(config, [rank[2][step] for rank in ranks]) for step in range(3)]
    mine = ours._replace(
        losses=ranks[0][0], norms=ranks[0][1], grads=grads, weights=assemble(config, [r[3] for r in ranks])
    )
    assert_same(mine, run_layout(replace(config, parallel=tiny().parallel)))


def test_the_fake_has_what_the_real_one_has() -> None:
    """Where CuPy is installed; it needs no GPU for that, but NCCL's library."""
    pytest.importorskip("cupy")
    from cupy.cuda import nccl

    if not nccl.available:
        pytest.skip("needs libnccl.so.2: pip install nvidia-nccl-cu13")

    def parameters(text: str) -> list[str]:
        """`f(self, intptr_t sendbuf, int op=None)` -> ["sendbuf", "op"]"""
        inside = re.findall(r"\((.*)\)", text)[0].split(",")
        return [p.split("=")[0].split()[-1] for p in inside if p.strip() not in ("", "self")]

    fake = FakeNccl()
    for name in dir(FakeNccl):
        if name.startswith("NCCL_"):
            assert getattr(fake, name) == getattr(nccl, name), name
    for name in ("groupStart", "groupEnd", "get_unique_id", "get_version"):
        ours = list(inspect.signature(getattr(fake, name)).parameters)
        assert ours == parameters(getattr(nccl, name).__doc__.splitlines()[0]), name
    public = [
        name
        for name in vars(Communicator)
        if not name.startswith("_") and callable(getattr(Communicator, name))
    ]
    assert len(public) > 10
    for name in public:
        ours = list(inspect.signature(getattr(Communicator, name)).parameters)[1:]
        real = getattr(nccl.NcclCommunicator, name).__doc__.splitlines()[0]
        assert ours == parameters(real), real
    made = parameters(nccl.NcclCommunicator.__doc__.splitlines()[0])
    assert made[:3] == list(inspect.signature(Communicator).parameters)
    mark = nccl.get_unique_id()
    assert type(mark) is bytes and len(mark) == 128
    assert nccl.NcclError(5).status == 5
    with pytest.raises(TypeError):
        nccl.NcclCommunicator.__new__(nccl.NcclCommunicator).bcast(np.int64(0), 1, 7, 0, 0)
    with pytest.raises(nccl.NcclError):
        nccl.groupEnd()
