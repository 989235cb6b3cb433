"""On what a run computes, and how its arrays travel: from the settings `backend`, `collectives` and `gemm` to
a device and a communicator.

    backend       auto: cupy, if every rank has CuPy and sees a GPU; else numpy
    collectives   auto: between GPUs nccl, if every rank has NCCL and a GPU of its own; else mpi (or threads),
                  by way of page-locked memory. The host's own arrays never go over NCCL
    gemm          auto: cublaslt, if every rank finds its library; else gemmex

All ranks decide alike, from what all of them have found. What is asked for by name, and cannot be had, is an
error. The ranks of a host take its GPUs in turn, so one may serve several ranks; where a launcher shows each
rank a GPU of its own, that is the rank's device 0.
"""

import ctypes
import importlib.util
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from minitrain.arrays.device import HOST, Device
from minitrain.comm.agree import gather_texts, together
from minitrain.comm.device import Connect, DeviceWorld
from minitrain.comm.interface import World
from minitrain.comm.place import place_on_host, require_own_devices
from minitrain.comm.ranks import who_says
from minitrain.comm.staged import Staging
from minitrain.comm.traced import Call
from minitrain.config import Config
from minitrain.errors import ConfigError, MinitrainError, Problem, one_line
from minitrain.observe.flops import peak_flops
from minitrain.observe.hardware import Hardware
from minitrain.ops.cuda.gemm import Gemm
from minitrain.watch.calls import CallLog, Mark

if TYPE_CHECKING:
    from minitrain.arrays.cupy_device import CupyDevice
    from minitrain.comm.nccl import Nccl

ASKS_FOR_GPUS = {
    "backend": ("cupy",),
    "collectives": ("nccl",),
    "gemm": ("cublaslt", "gemmex"),
    "attention": ("flash", "cudnn"),
}
NO_DRIVER, NO_GPU, NO_CUPY = "no NVIDIA driver", "no GPU", "no CuPy"
CUDA_ERROR_NO_DEVICE = 100


class Backend(NamedTuple):
    """What a run is built with."""

    device: Device
    world: World  # takes arrays of the host and of the device
    hardware: Hardware


class Transport(NamedTuple):
    """How arrays of GPUs travel; `text` and `notes` for the banner."""

    connect: Connect
    nccl: "Nccl | None"
    text: str
    notes: tuple[str, ...] = ()


@contextmanager
def opened(config: Config, world: World, calls: CallLog) -> Iterator[Backend]:
    """The backend, for as long as a run lasts. Collective over `world`, at both ends.

    `calls` learns what is under way on a GPU. Raises ConfigError, the same on every rank.
    """
    lacking = what_is_lacking(config, world)
    if lacking is not None:
        yield Backend(HOST, world, Hardware(notes=(lacking,) if lacking else ()))
        return
    device = take_device(world)
    gemm = choose_gemm(config, world, device)
    way = choose_transport(config, world, device)
    hardware = describe_hardware(config, world, device, way, gemm)
    try:
        if way.nccl:
            calls.gpu = OnGpu(device, way.nccl)
        yield Backend(device, _connected(world, way, calls), hardware)
        device.synchronize()
        calls.gpu = None
        if way.nccl:
            way.nccl.close()
    except BaseException:  # the process is to end, which it cannot while it waits for others on the GPU
        calls.gpu = None
        if way.nccl:
            with suppress(Exception):  # what came first is what is told
                way.nccl.abort_all()
        raise


class OnGpu(NamedTuple):
    """What another thread may ask of the GPU (watch/calls.py)."""

    device: "CupyDevice"
    nccl: "Nccl"

    def mark(self) -> Mark:
        return self.device.mark()

    def check(self) -> None:
        self.nccl.check()


def what_is_lacking(config: Config, world: World) -> str | None:
    """None if the run is one on GPUs. Else what speaks against it: a text if some are there, "" if none are.
    Raises ConfigError where they are asked for. Collective, unless the backend is numpy.
    """
    if config.backend == "numpy":
        return ""
    found = gather_texts(world, look_for_gpu())
    lacking = {rank: text for rank, text in found.items() if text}
    if not lacking:
        return None
    asked = [name for name, values in ASKS_FOR_GPUS.items() if getattr(config, name) in values]
    told = f"not every rank can use a GPU: {who_says(lacking)}"
    if asked:
        where = ", ".join(f"{name} {getattr(config, name)}" for name in asked)
        error = ConfigError([Problem(told, where, remedy_for(lacking.values()))])
        error.known_everywhere = True
        raise error
    nothing_there = all(text in (NO_DRIVER, NO_GPU) for text in found.values())
    return "" if nothing_there else f"on CPUs: {told}; {remedy_for(lacking.values())}"


def look_for_gpu() -> str:
    """What this process lacks to use a GPU; "" if nothing. CuPy takes a while to import: the driver comes
    first.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return NO_DRIVER
    n, status = ctypes.c_int(0), driver.cuInit(0)
    if status not in (0, CUDA_ERROR_NO_DEVICE):
        return f"an NVIDIA driver that does not work (cuInit: {status})"
    if status or driver.cuDeviceGetCount(ctypes.byref(n)) or n.value == 0:
        return NO_GPU
    if importlib.util.find_spec("cupy") is None:
        return NO_CUPY
    try:
        from minitrain.arrays.cupy_device import n_devices
    except ImportError as error:
        return f"a CuPy that cannot be imported ({one_line(str(error))})"
    return "" if n_devices() else "a CuPy for a newer CUDA than the driver's"


def remedy_for(lacking: Iterable[str]) -> str:
    """What to do about the first of these."""
    first = next(iter(lacking))
    if first in (NO_DRIVER, NO_GPU):
        return "start it where each rank sees a GPU, with its driver, or choose --backend numpy"
    if first == NO_CUPY:
        return "pip install 'minitrain[cupy]', which brings cupy-cuda13x, or choose --backend numpy"
    return "update the driver, or install the CuPy that fits it (nvidia-smi shows its CUDA version)"


def take_device(world: World) -> "CupyDevice":
    """This rank's. Collective."""
    from minitrain.arrays.cupy_device import CupyDevice, n_devices

    return CupyDevice(place_on_host(world).rank % n_devices())


def choose_gemm(config: Config, world: World, device: "CupyDevice") -> str:
    """Gives the device its matrix products; tells whose. Collective."""
    from minitrain.ops.cuda.cublaslt import CublasLt
    from minitrain.ops.cuda.gemm_ex import GemmEx

    kinds = {"cublaslt": CublasLt.of_cupy, "gemmex": GemmEx.of_cupy}
    names = list(kinds) if config.gemm == "auto" else [config.gemm]
    for name in names:
        try:
            device.gemm = together(world, partial(_make_gemm, kinds[name], name))
            break
        except MinitrainError:  # the same on every rank
            if name == names[-1]:
                raise
    return name


def _make_gemm(make: Callable[[], Gemm], name: str) -> Gemm:
    try:
        return make()
    except ImportError as error:
        remedy = "pip install 'cupy-cuda13x[ctk]', or put the directory of the system's into LD_LIBRARY_PATH"
        problem = Problem(f"the library of {name} is not found: {one_line(str(error))}", "gemm", remedy)
        raise ConfigError([problem]) from error


def choose_transport(config: Config, world: World, device: "CupyDevice") -> Transport:
    """Collective."""
    notes: tuple[str, ...] = ()
    if config.collectives == "nccl" or (config.collectives == "auto" and world.size > 1):
        from minitrain.arrays.cupy_device import describe
        from minitrain.comm.nccl import Nccl

        try:
            require_own_devices(world, describe(device.index).place)
            nccl = together(world, lambda: Nccl(device))
            return Transport(nccl.connect, nccl, "collectives nccl")
        except MinitrainError as error:  # the same on every rank
            if config.collectives == "nccl":
                raise
            notes = (f"not over NCCL: {error.problems[0].what}",)
    if world.size == 1:
        return Transport(Staging(device).connect, None, "")
    if config.collectives == "threads":
        name, direct = "threads", False
    else:
        name, direct = "mpi", mpi_takes_device_arrays()
    text = f"collectives {name}" + ("" if direct else " by way of page-locked memory")
    return Transport(Staging(device, direct).connect, None, text, notes)


def mpi_takes_device_arrays() -> bool:
    from minitrain.comm.mpi import takes_device_buffers

    return takes_device_buffers()


def describe_hardware(
    config: Config, world: World, device: "CupyDevice", way: Transport, gemm: str
) -> Hardware:
    """`4 ranks on 2 NVIDIA H100 80GB HBM3, collectives ..., gemm ...`. Collective."""
    from minitrain.arrays.cupy_device import describe

    card = describe(device.index)
    names = gather_texts(world, card.name)
    places = gather_texts(world, f"{card.place} on {socket.gethostname()}")
    cards = [names[rank] for rank in {place: rank for rank, place in places.items()}.values()]  # each once
    ranks = f"{world.size} ranks on " if world.size > 1 else ""
    text = ranks + " and ".join(f"{n} {name}" for name, n in Counter(cards).items())
    text = ", ".join(part for part in (text, way.text, f"gemm {gemm}") if part)
    return Hardware(text, peak_flops(cards, config.precision), way.notes)


def _connected(world: World, way: Transport, calls: CallLog) -> World:
    """Ranks may wait for each other here: as in any call."""
    calls.begin(Call("connect", way.text, world.members, 1))
    try:
        return DeviceWorld(world, way.connect)
    finally:
        calls.end()
