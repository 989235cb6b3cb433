"""The GPU of a test: an emulator, or with `pytest --gpu` the first real one of this machine.

    numpy_gpu    its arrays are NumPy's: for tests of one kernel
    array_gpu    it has arrays of its own: for tests of what is done with them

Ranks on threads share the one there is.
"""

from typing import Any

from cuda.card import Card
from cuda.emulator import Emulator, missing
from cuda.strict import StrictGpu

from minitrain.arrays.device import Device
from minitrain.comm.device import DeviceWorld
from minitrain.comm.interface import World
from minitrain.comm.staged import Staging


class Wanted:
    """By the command line."""

    gpu = False


def numpy_gpu() -> Emulator | Card:
    return Card(array_gpu()) if Wanted.gpu else Emulator()


def array_gpu() -> Any:
    if not Wanted.gpu:
        return StrictGpu()
    from minitrain.arrays.cupy_device import CupyDevice
    from minitrain.ops.cuda.cublaslt import CublasLt

    gpu = CupyDevice(0)
    gpu.gemm = CublasLt.of_cupy()
    return gpu


def on_gpu(world: World) -> tuple[Device, World]:
    """A rank's device, and its world for arrays there."""
    gpu = array_gpu()
    return gpu, world if world.size == 1 else DeviceWorld(world, Staging(gpu).connect)


def why_not() -> str:
    """Why there is none; empty if there is."""
    return "" if Wanted.gpu else missing()
