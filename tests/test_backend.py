"""From settings to a device and a communicator: what is chosen on which machines, what is refused and how
that is told, and how a run ends. The machines are made up.
"""

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comm.fake_device import LateDevice, device_array
from comm.fake_nccl import FakeNccl
from launch import run_minitrain, run_python

from minitrain import backend
from minitrain.arrays.device import HOST
from minitrain.backend import look_for_gpu, opened
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.config import Config
from minitrain.errors import ConfigError, MinitrainError, TryAgainError
from minitrain.observe.hardware import UNKNOWN, Hardware
from minitrain.watch.calls import CallLog

LIMIT = 60.0
H100 = "NVIDIA H100 80GB HBM3"


def rank() -> int:
    """Of the thread that asks."""
    name = threading.current_thread().name
    return int(name.split()[1]) if name.startswith("rank") else 0


@dataclass
class Cluster:
    """Machines as each rank finds them, by default one host with one GPU."""

    hosts: list[str] = field(default_factory=lambda: ["a"] * 8)
    gpus: list[list[str]] = field(default_factory=lambda: [["0000:65:00.0"]] * 8)  # that a rank sees
    lacks: dict[int, str] = field(default_factory=dict)
    cards: dict[str, str] = field(default_factory=dict)  # by place; the others are H100
    nccl: Any = None  # the library
    libraries: tuple[str, ...] = ("cublaslt", "gemmex")
    aware: bool = False  # MPI takes device arrays
    ended: list[str] = field(default_factory=list)


class Device(LateDevice):
    """Of a rank, by its index among those that the rank sees."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.gemm = index, None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    module = ModuleType("minitrain.arrays.cupy_device")
    module.CupyDevice = Device  # type: ignore[attr-defined]
    module.n_devices = lambda: len(made.gpus[rank()])  # type: ignore[attr-defined]

    def describe(index: int) -> Any:
        place = made.gpus[rank()][index]
        return SimpleNamespace(name=made.cards.get(place, H100), place=place)

    module.describe = describe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backend, "look_for_gpu", lambda: made.lacks.get(rank(), ""))
    monkeypatch.setattr(backend, "mpi_takes_device_arrays", lambda: made.aware)
    monkeypatch.setattr("socket.gethostname", lambda: made.hosts[rank()])

    def load() -> Any:
        if made.nccl is None:
            raise ConfigError([backend.Problem("there is no libnccl.so.2", "collectives nccl", "get it")])
        return made.nccl

    def maker(name: str) -> Callable[[], str]:
        def of_cupy() -> str:
            if name not in made.libraries:
                raise ImportError(f"lib{name}.so:\n not there")
            return name

        return of_cupy

    monkeypatch.setattr("minitrain.comm.nccl.load", load)
    monkeypatch.setattr("minitrain.ops.cuda.cublaslt.CublasLt.of_cupy", maker("cublaslt"))
    monkeypatch.setattr("minitrain.ops.cuda.gemm_ex.GemmEx.of_cupy", maker("gemmex"))
    return made


def found(n: int, **settings: str) -> list[tuple[Any, Hardware]]:
    """Each rank's device and hardware, after all ranks have added something up by way of it."""

    def rank_main(world: Any) -> tuple[Any, Hardware]:
        with opened(replace(Config(), **settings), world, CallLog()) as run:
            assert run.world.size == n
            ones: Any = device_array(1, 1) if run.device is not HOST else np.ones(2)
            run.world.all_reduce(ones)
            if run.device is not HOST:
                run.device.synchronize()  # type: ignore[attr-defined]
                ones = ones.inside
            assert ones.tolist() == [n, n]
        return run.device, run.hardware

    return [rank_main(SingleComm())] if n == 1 else run_threads(n, rank_main, LIMIT)


def told(n: int, **settings: str) -> ConfigError:
    """The error that all ranks raise alike."""

    def rank_main(world: Any) -> MinitrainError:
        with pytest.raises(MinitrainError) as caught:
            with opened(replace(Config(), **settings), world, CallLog()):
                pass
        return caught.value

    errors = [rank_main(SingleComm())] if n == 1 else run_threads(n, rank_main, LIMIT)
    assert len({str(error) for error in errors}) == 1
    assert all(error.exit_code == 2 and error.known_everywhere for error in errors)
    return errors[0]  # type: ignore[return-value]


# --- CPUs or GPUs


@pytest.mark.parametrize("lacks", ["no NVIDIA driver", "no GPU"])
def test_without_gpus_it_is_numpy_and_nothing_is_said(cluster: Cluster, lacks: str) -> None:
    cluster.lacks = dict.fromkeys(range(3), lacks)
    assert found(3) == [(HOST, UNKNOWN)] * 3
    assert found(1) == [(HOST, UNKNOWN)]


def test_numpy_is_numpy_whatever_there_is(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "look_for_gpu", None)  # nobody looks
    assert found(2, backend="numpy") == [(HOST, UNKNOWN)] * 2


def test_gpus_that_not_all_can_use_are_left_alone_and_the_banner_says_so(cluster: Cluster) -> None:
    cluster.lacks = {1: "no CuPy", 2: "no CuPy"}
    note = (
        "on CPUs: not every rank can use a GPU: ranks 1-2: no CuPy; "
        "pip install 'minitrain[cupy]', which brings cupy-cuda13x, or choose --backend numpy"
    )
    assert found(4) == [(HOST, Hardware(notes=(note,)))] * 4
    cluster.lacks = dict.fromkeys(range(4), "no CuPy")
    assert "ranks 0-3: no CuPy" in found(4)[3][1].notes[0]
    cluster.lacks = {0: "no GPU"}
    assert "rank 0: no GPU; start it where" in found(2)[1][1].notes[0]


@pytest.mark.parametrize(
    "settings, where",
    [
        ({"backend": "cupy"}, "backend cupy"),
        ({"collectives": "nccl"}, "collectives nccl"),
        ({"gemm": "gemmex"}, "gemm gemmex"),
        ({"backend": "cupy", "gemm": "cublaslt"}, "backend cupy, gemm cublaslt"),
    ],
)
def test_gpus_that_are_asked_for_and_not_there_are_an_error(
    cluster: Cluster, settings: dict[str, str], where: str
) -> None:
    cluster.lacks = {1: "no NVIDIA driver", 2: "no CuPy"}
    problem = told(4, **settings).problems[0]
    assert problem.what == "not every rank can use a GPU: rank 1: no NVIDIA driver, rank 2: no CuPy"
    assert problem.where == where
    assert problem.remedy == "start it where each rank sees a GPU, with its driver, or choose --backend numpy"
    cluster.lacks = {0: "a CuPy for a newer CUDA than the driver's"}
    assert "nvidia-smi shows its CUDA version" in told(1, **settings).problems[0].remedy


# --- which GPU


def test_ranks_take_the_gpus_of_their_host_in_turn(cluster: Cluster) -> None:
    cluster.hosts = ["b", "a", "a", "b", "a"]
    cluster.gpus = [["p", "q"]] * 5
    assert [device.index for device, _ in found(5)] == [0, 0, 1, 1, 0]


def test_a_rank_that_is_shown_its_own_gpu_takes_that(cluster: Cluster) -> None:
    cluster.gpus, cluster.nccl = [["p"], ["q"], ["r"]], FakeNccl(LIMIT)
    ranks = found(3)
    assert [device.index for device, _ in ranks] == [0, 0, 0]
    assert ranks[0][1].text == f"3 ranks on 3 {H100}, collectives nccl, gemm cublaslt"


def test_the_peak_is_that_of_every_gpu_once(cluster: Cluster) -> None:
    assert found(4, precision="bf16")[3][1].peak == 989.5e12
    assert found(1, precision="fp32")[0][1].peak == 67e12
    cluster.hosts = ["a", "a", "b", "b"]
    assert found(4, precision="bf16")[2][1].peak == 2 * 989.5e12
    cluster.cards = {"0000:65:00.0": "a card that nobody knows"}
    assert found(4, precision="bf16")[0][1].peak is None


# --- collectives


def text(n: int, **settings: str) -> str:
    texts = {hardware.text for _, hardware in found(n, **settings)}
    assert len(texts) == 1
    return texts.pop()


def test_a_rank_alone_needs_no_collectives(cluster: Cluster) -> None:
    assert text(1) == f"1 {H100}, gemm cublaslt"
    assert text(1, collectives="mpi") == f"1 {H100}, gemm cublaslt"


def test_on_a_shared_gpu_it_is_mpi_and_the_banner_says_why(cluster: Cluster) -> None:
    cluster.nccl = FakeNccl(LIMIT)
    assert text(2) == f"2 ranks on 1 {H100}, collectives mpi by way of page-locked memory, gemm cublaslt"
    assert not cluster.nccl.communicators
    assert found(2)[1][1].notes == (
        "not over NCCL: NCCL takes one rank for each GPU, but ranks 0-1 share 0000:65:00.0 on a",
    )
    assert "ranks 0-1 share 0000:65:00.0 on a; collectives nccl; start as many" in str(
        told(2, collectives="nccl")
    )


def test_without_nccl_on_every_rank_it_is_mpi(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.gpus = [["p", "q"]] * 2
    fake = FakeNccl(LIMIT)

    def on_the_first_alone() -> Any:
        if rank() == 1:
            raise ConfigError([backend.Problem("there is no libnccl.so.2", "collectives nccl", "get it")])
        return fake

    monkeypatch.setattr("minitrain.comm.nccl.load", on_the_first_alone)
    assert "collectives mpi by way of" in text(2)
    assert found(2)[0][1].notes == ("not over NCCL: there is no libnccl.so.2",)
    assert str(told(2, collectives="nccl")) == "there is no libnccl.so.2; collectives nccl; get it"
    assert found(2, collectives="mpi")[0][1].notes == (), "it was not asked for"


def test_with_a_gpu_each_it_is_nccl(cluster: Cluster) -> None:
    for settings in ({}, {"collectives": "nccl"}):
        cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)
        assert text(2, **settings) == f"2 ranks on 2 {H100}, collectives nccl, gemm cublaslt"
        assert len(cluster.nccl.communicators) == 2
        assert not any(c._alive for c in cluster.nccl.communicators), "closed"
    assert "collectives mpi by way" in text(2, collectives="mpi")


def test_an_mpi_that_takes_device_arrays_gets_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.aware = True
    made: list[bool] = []

    class Staging(backend.Staging):
        def __init__(self, device: Any, direct: bool = False) -> None:
            made.append(direct)
            super().__init__(device)

    monkeypatch.setattr(backend, "Staging", Staging)
    assert text(2, collectives="mpi") == f"2 ranks on 1 {H100}, collectives mpi, gemm cublaslt"
    assert made == [True, True]
    made.clear()
    assert text(2, collectives="threads").startswith(
        f"2 ranks on 1 {H100}, collectives threads by way of page-locked memory"
    )
    assert made == [False, False], "threads are no MPI"


# --- products of matrices


def test_gemm_is_the_first_whose_library_all_have(cluster: Cluster) -> None:
    assert [device.gemm for device, _ in found(2)] == ["cublaslt"] * 2
    assert found(1, gemm="gemmex")[0][0].gemm == "gemmex"
    cluster.libraries = ("gemmex",)
    assert found(1)[0][0].gemm == "gemmex"
    assert text(1) == f"1 {H100}, gemm gemmex"
    assert "the library of cublaslt is not found: libcublaslt.so: not there; gemm" in str(
        told(2, gemm="cublaslt")
    )
    cluster.libraries = ()
    assert "the library of gemmex is not found" in str(told(2))


# --- how it ends


@pytest.mark.parametrize("broken", [False, True])
def test_an_error_ends_what_is_under_way_and_is_not_hidden(broken: bool, cluster: Cluster) -> None:
    """Also if the end fails, as on a GPU that is broken."""
    cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)
    aborted = []

    def abort(self: Any) -> None:
        aborted.append(self._rank)
        if broken:
            raise RuntimeError("nothing works any more")

    cluster.nccl.NcclCommunicator.abort = abort

    def rank_main(world: ThreadComm) -> None:
        calls = CallLog()
        with pytest.raises(KeyError, match="the first"):
            with opened(Config(), world, calls):
                assert calls.gpu
                raise KeyError("the first")
        assert calls.gpu is None

    run_threads(2, rank_main, LIMIT)
    assert sorted(aborted) == [0, 1]


def test_the_end_of_a_good_run_waits_for_the_gpu_and_then_closes(cluster: Cluster) -> None:
    cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)
    order: list[str] = []

    def destroy(self: Any) -> None:
        order.append("close")

    cluster.nccl.NcclCommunicator.destroy = destroy

    def rank_main(world: ThreadComm) -> None:
        with opened(Config(), world, CallLog()) as run:
            device: Any = run.device
            synchronize = device.synchronize

            def synchronized() -> None:
                order.append("wait")
                synchronize()

            device.synchronize = synchronized
        assert device.idle

    run_threads(2, rank_main, LIMIT)
    assert sorted(order[:2]) in (["wait", "wait"], ["close", "wait"]) and order.count("close") == 2


def test_a_gpu_that_fails_at_the_very_end_is_an_error(cluster: Cluster) -> None:
    cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)

    def rank_main(world: ThreadComm) -> None:
        with pytest.raises(RuntimeError, match="illegal"):
            with opened(Config(), world, CallLog()) as run:

                def fails() -> None:
                    raise RuntimeError("illegal address")

                run.device.synchronize = fails  # type: ignore[attr-defined]
        assert not any(c._alive for c in cluster.nccl.communicators if c._rank == world.rank)

    run_threads(2, rank_main, LIMIT)


def test_connecting_is_a_call_that_a_watch_sees(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)
    seen = []
    connect = backend.DeviceWorld

    def rank_main(world: ThreadComm) -> None:
        calls = CallLog()

        def connecting(*args: Any) -> Any:
            seen.append(calls_of[threading.get_ident()].unended())
            return connect(*args)

        calls_of[threading.get_ident()] = calls
        monkeypatch.setattr(backend, "DeviceWorld", connecting)
        world.barrier()
        with opened(Config(), world, calls):
            assert calls.unended() is None

    calls_of: dict[int, CallLog] = {}
    run_threads(2, rank_main, LIMIT)
    assert [(p.call.verb, p.call.axis, p.call.ranks) for p in seen] == [
        ("connect", "collectives nccl", (0, 1))
    ] * 2


def test_a_broken_nccl_is_seen_by_whoever_asks(cluster: Cluster) -> None:
    cluster.gpus, cluster.nccl = [["p", "q"]] * 2, FakeNccl(LIMIT)

    def rank_main(world: ThreadComm) -> None:
        calls = CallLog()
        with opened(Config(), world, calls):
            assert calls.gpu
            calls.gpu.check()
            world.barrier()
            for communicator in cluster.nccl.communicators:
                communicator.broken = 6
            with pytest.raises(TryAgainError, match="NCCL failed in a call that was under way"):
                calls.gpu.check()
            for communicator in cluster.nccl.communicators:
                communicator.broken = 7  # in progress: no error
            calls.gpu.check()

    run_threads(2, rank_main, LIMIT)


# --- what a process finds


class Driver:
    """libcuda.so.1 of a machine with `n` GPUs."""

    def __init__(self, n: int, status: int = 0) -> None:
        self._n, self._status = n, status

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._status

    def cuDeviceGetCount(self, n: Any) -> int:
        n._obj.value = self._n
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """With a GPU, and a CuPy that can use it."""
    made = SimpleNamespace(driver=Driver(1), spec=object(), n_devices=lambda: 1, imported=[])

    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        if made.driver is None:
            raise OSError("no such file")
        return made.driver

    class Module(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name == "n_devices":
                made.imported.append(name)
                return made.n_devices
            raise AttributeError(name)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: made.spec if n == "cupy" else find_spec(n))
    monkeypatch.setitem(sys.modules, "minitrain.arrays.cupy_device", Module("minitrain.arrays.cupy_device"))
    yield made


def test_what_a_process_lacks(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_for_gpu() == ""
    machine.n_devices = lambda: 0
    assert look_for_gpu() == "a CuPy for a newer CUDA than the driver's"
    monkeypatch.setitem(sys.modules, "minitrain.arrays.cupy_device", None)
    assert look_for_gpu().startswith("a CuPy that cannot be imported (")
    machine.spec = None
    assert look_for_gpu() == "no CuPy"


@pytest.mark.parametrize(
    "driver, lacks",
    [
        (None, "no NVIDIA driver"),
        (Driver(0), "no GPU"),
        (Driver(1, status=100), "no GPU"),
        (Driver(1, status=803), "an NVIDIA driver that does not work (cuInit: 803)"),
    ],
)
def test_cupy_is_not_imported_where_the_driver_has_no_gpu(
    machine: SimpleNamespace, driver: Driver | None, lacks: str
) -> None:
    machine.driver = driver
    assert look_for_gpu() == lacks
    assert not machine.imported


@pytest.mark.skipif(look_for_gpu() == "", reason="there is a GPU here")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_gpu_that_is_not_there_is_one_line(ranks: int, tmp_path: Path) -> None:
    for arguments in ("--backend cupy", "--collectives nccl"):
        job = run_minitrain(*arguments.split(), ranks=ranks, cwd=tmp_path)
        assert job.returncode == 2
        (line,) = [line for line in job.stderr.splitlines() if line.startswith("minitrain: error:")]
        assert line.startswith("minitrain: error: not every rank can use a GPU: rank")
        assert f"; {arguments.removeprefix('--')}; " in line
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_run_on_cpus_imports_no_cupy(tmp_path: Path) -> None:
    """In a process of its own, whatever this machine has."""
    code = (
        "import sys\nfrom minitrain.cli import main\n"
        "arguments = '--train.steps 1 --model.width 32 --data.holdout 0.001 --run.sample_tokens 0 '"
        "'--run.export_hf false --run.keep 0 --backend numpy --run.dir'.split()\n"
        "assert main([*arguments, sys.argv[1] + '/run']) == 0\n"
        "assert not [name for name in sys.modules if name.startswith('cupy')]\n"
    )
    job = run_python(code, tmp_path, timeout=60)
    assert job.returncode == 0, job.stderr
