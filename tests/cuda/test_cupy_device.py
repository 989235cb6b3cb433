"""What can be said of the real device without a GPU: CuPy has what is asked of it."""

import pytest

from minitrain.arrays.device import Gpu

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'minitrain[cupy]'", exc_type=ImportError)


def test_it_offers_what_a_gpu_offers() -> None:
    from minitrain.arrays.cupy_device import CupyDevice

    members = {name for name in vars(Gpu) if not name.startswith("_")}
    assert {"launch", "start_reading"} <= members
    assert [name for name in members if not hasattr(CupyDevice, name)] == []


def test_cupy_has_what_is_called() -> None:
    for name in (
        "RawModule", "asarray", "cuda.Device", "cuda.Event", "cuda.alloc_pinned_memory",
        "cuda.get_current_stream", "cuda.MemoryPointer.copy_to_host_async",
        "cuda.MemoryPointer.copy_from_host_async", "cuda.runtime.getDeviceCount",
        "cuda.runtime.getDeviceProperties", "cuda.runtime.deviceGetPCIBusId",
    ):  # fmt: skip
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)


def test_devices_are_counted_where_there_is_no_driver() -> None:
    from minitrain.arrays.cupy_device import n_devices

    assert n_devices() >= 0
