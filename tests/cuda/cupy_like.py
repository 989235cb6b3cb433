"""Arrays of NumPy's that do no more than CuPy's do: they do not mix with the host's, take no keyword that
CuPy has not, and say so where a GPU would make the host wait.

What CuPy offers is asked of CuPy itself, which can be imported without a GPU. Where it is not installed,
functions are not checked, and all else is.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.emulator import Emulator

try:
    import cupy
except ImportError:
    cupy = None

UFUNC_KEYWORDS = {"dtype", "casting"}


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of this kind. Operators are ufuncs, which come to `__array_ufunc__`."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    itemsize = property(lambda self: self.values.itemsize)
    nbytes = property(lambda self: self.values.nbytes)
    strides = property(lambda self: self.values.strides)
    flags = property(lambda self: self.values.flags)
    T = property(lambda self: DeviceArray(self.values.T))

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("CuPy turns no array into one of NumPy's unasked")

    def _wait(self) -> Any:
        raise AssertionError("the host would wait for the GPU")

    __bool__ = __int__ = __float__ = __index__ = item = tolist = _wait

    def __getitem__(self, key: Any) -> "DeviceArray":
        return _wrapped(self.values[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[_index(key)] = _unwrapped(value)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **more: Any) -> Any:
        name = ufunc.__name__
        assert method == "__call__", f"CuPy has no numpy.{name}.{method}"
        assert cupy is None or hasattr(cupy, name), f"CuPy has no numpy.{name}"
        assert more.keys() <= UFUNC_KEYWORDS, f"cupy.{name} takes no {', '.join(more)}"
        arrays = tuple(x.values for x in out)
        result = ufunc(*map(_unwrapped, inputs), **({"out": arrays} if out else {}), **more)
        return out[0] if out else _wrapped(result)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if cupy is not None:
            theirs = getattr(cupy, func.__name__, func)
            assert theirs is not func, f"CuPy has no numpy.{func.__name__}"
            inspect.signature(theirs).bind(*args, **more)
        values = [_unwrapped(x) for x in args], {name: _unwrapped(x) for name, x in more.items()}
        return _wrapped(func(*values[0], **values[1]))

    # Methods, with the parameters that CuPy's have.
    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> "DeviceArray":
        return _wrapped(self.values.max(axis, keepdims=keepdims))

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Any:
        return _wrapped(self.values.sum(axis, dtype, keepdims=keepdims))

    def astype(
        self, dtype: Any, order: str = "K", casting: None = None, subok: None = None, copy: bool = True
    ) -> "DeviceArray":
        same = not copy and self.dtype == np.dtype(dtype)
        return self if same else DeviceArray(self.values.astype(dtype, order))

    def reshape(self, *shape: Any) -> "DeviceArray":
        return DeviceArray(self.values.reshape(*shape))

    def transpose(self, *axes: Any) -> "DeviceArray":
        return DeviceArray(self.values.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> "DeviceArray":
        return DeviceArray(self.values.swapaxes(a, b))

    def fill(self, value: float) -> None:
        self.values.fill(value)

    def get(self) -> np.ndarray:
        """What the host asks for by this name it waits for."""
        return self.values.copy()

    def set(self, values: np.ndarray) -> None:
        assert type(values) is np.ndarray and (values.shape, values.dtype) == (self.shape, self.dtype)
        assert self.flags.c_contiguous
        self.values[...] = values


class CupyLikeGpu(Emulator):
    """The emulator, with such arrays."""

    xp = SimpleNamespace(
        empty=lambda *args, **more: DeviceArray(np.empty(*args, **more)),
        zeros=lambda *args, **more: DeviceArray(np.zeros(*args, **more)),
        ones=lambda *args, **more: DeviceArray(np.ones(*args, **more)),
        full=lambda *args, **more: DeviceArray(np.full(*args, **more)),
        concatenate=np.concatenate,
    )

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()  # kernels

    def to_device(self, x: np.ndarray) -> DeviceArray:
        assert type(x) is np.ndarray
        return DeviceArray(x.copy())

    def launch(self, source, kernel, types, blocks, threads, *args) -> None:
        for x in args:
            assert not isinstance(x, np.ndarray | np.generic), f"{kernel} is given memory of the host"
        self.ran.add(kernel)
        super().launch(
            source, kernel, types, blocks, threads,
            *(x.values if isinstance(x, DeviceArray) else x for x in args),
        )  # fmt: skip

    def start_reading(self, x: DeviceArray) -> Any:
        return super().start_reading(x.values)


def _wrapped(x: Any) -> DeviceArray:
    return DeviceArray(np.asarray(x))


def _unwrapped(x: Any) -> Any:
    """For NumPy. In lists too; arrays of the host are refused, numbers are not."""
    if isinstance(x, DeviceArray):
        return x.values
    if isinstance(x, list | tuple):
        return type(x)(map(_unwrapped, x))
    if isinstance(x, np.ndarray):
        raise TypeError("an array of the host among those of a GPU")
    return x


def _index(key: Any) -> Any:
    return _unwrapped(key)
