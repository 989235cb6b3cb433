"""Arrays that are as particular as CuPy's, computed by NumPy; and a GPU of the tests (emulator.py) that has
them.

A program that is to run on CuPy may rely on NumPy's protocols as far as CuPy answers them, and no further. So
these arrays refuse

    to be mixed with arrays of NumPy, or to become one unasked
    functions and keywords that CuPy has not (its own signatures are asked, where it is installed)
    methods of ufuncs other than the call, and the keywords of NumPy's that CuPy's ufuncs have not

and each look at their values from the host is counted: on a GPU the host waits there for all that was
started.
"""

import inspect
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from cuda.emulator import Emulator

try:
    import cupy
except ImportError:
    cupy = None

UFUNC_KEYWORDS = {"out", "dtype"}
METHODS = {
    "astype": {"order", "casting", "copy"},
    "copy": {"order"},
    "dot": set(),
    "fill": set(),
    "max": {"axis", "out", "keepdims"},
    "mean": {"axis", "dtype", "out", "keepdims"},
    "min": {"axis", "out", "keepdims"},
    "any": {"axis", "out", "keepdims"},
    "all": {"axis", "out", "keepdims"},
    "argmax": {"axis", "out", "dtype", "keepdims"},
    "ravel": {"order"},
    "repeat": {"axis"},
    "reshape": {"order"},
    "sum": {"axis", "dtype", "out", "keepdims"},
    "swapaxes": set(),
    "transpose": set(),
    "view": {"dtype"},
}
"""What methods of CuPy's arrays take besides their own arguments."""

PASSED_ON = ("dtype", "shape", "size", "ndim", "nbytes", "itemsize", "strides", "flags")


class Address(NamedTuple):
    ptr: int


class Waits(threading.local):
    """How often the host has looked at values of this thread's GPU."""

    n = 0


WAITS = Waits()


def refuse(what: str) -> TypeError:
    return TypeError(f"CuPy would refuse this, or wait unasked: {what}")


class StrictArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Operators are ufuncs. `inside` is for the tests' own use."""

    __hash__ = object.__hash__

    def __init__(self, inside: np.ndarray, base: "StrictArray | None" = None) -> None:
        assert type(inside) is np.ndarray
        self.inside, self.base = inside, base

    def __getattr__(self, name: str) -> Any:
        if name in PASSED_ON:
            return getattr(self.inside, name)
        if name in METHODS:
            return _Method(self, name)
        raise AttributeError(f"an array of CuPy is not asked for {name} here")

    @property
    def data(self) -> Address:
        return Address(self.inside.ctypes.data)

    @property
    def T(self) -> "StrictArray":
        return self.transpose()

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, where: Any) -> "StrictArray":
        return _wrapped(self.inside[_index(where)], self)

    def __setitem__(self, where: Any, values: Any) -> None:
        self.inside[_index(where)] = _bare(values)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method != "__call__" or (cupy and not hasattr(cupy, ufunc.__name__)):
            raise refuse(f"{ufunc.__name__}.{method}")
        if not keywords.keys() <= UFUNC_KEYWORDS:
            raise refuse(f"{ufunc.__name__} with {sorted(keywords)}")
        out = keywords.pop("out", None)
        bare = tuple(_bare(x) for x in out) if out else None
        result = ufunc(*map(_bare, inputs), **keywords, **({"out": bare} if bare else {}))
        return out[0] if out else _wrapped(result, None)

    def __array_function__(self, function: Any, types: Any, args: Any, keywords: Any) -> Any:
        return _call(function, args, keywords)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise refuse("an array becomes one of NumPy")

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __deepcopy__(self, _: Any) -> "StrictArray":
        return StrictArray(self.inside.copy())

    # What the host sees, having waited.

    def get(self) -> np.ndarray:
        WAITS.n += 1
        return self.inside.copy()

    def set(self, values: np.ndarray) -> None:
        assert type(values) is np.ndarray and values.dtype == self.dtype and values.shape == self.shape
        assert self.flags.c_contiguous or self.flags.f_contiguous, "set needs a contiguous array"
        self.inside[...] = values

    def tolist(self) -> Any:
        return self.get().tolist()

    def item(self) -> Any:
        return self.get().item()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())


class _Method:
    def __init__(self, array: StrictArray, name: str) -> None:
        self._array, self._name = array, name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if not keywords.keys() <= METHODS[self._name]:
            raise refuse(f"{self._name} with {sorted(keywords)}")
        values = getattr(self._array.inside, self._name)(
            *map(_bare, args), **{name: _bare(value) for name, value in keywords.items()}
        )
        if values is self._array.inside:
            return self._array
        return None if values is None else _wrapped(values, self._array)


class StrictModule:
    """In the place of the module `cupy`."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type):
            return function
        return lambda *args, **keywords: _call(function, args, keywords)


def _call(function: Any, args: Any, keywords: Any) -> Any:
    _require_signature(function.__module__, function.__name__, args, keywords)
    bare = [_bare(x) for x in args], {name: _bare(x) for name, x in keywords.items()}
    source = next((x for x in args if isinstance(x, StrictArray)), None)
    return _wrapped(function(*bare[0], **bare[1]), source)


def _require_signature(module: str, name: str, args: Any, keywords: Any) -> None:
    if cupy is None:
        return
    theirs = _theirs(module, name)
    if theirs is None:
        raise refuse(f"a function {name} that it has not")
    try:
        if theirs is not inspect.Signature.empty:
            theirs.bind(*args, **keywords)
    except TypeError as error:
        raise refuse(f"{name}: {error}") from None


@cache
def _theirs(module: str, name: str) -> Any:
    """CuPy's own signature; empty if it does not tell, None if it has no such function."""
    place: Any = cupy
    for part in module.split(".")[1:]:
        place = getattr(place, part, None)
    function = getattr(place, name, None)
    if function is None or function is getattr(np, name, None):
        return None
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.Signature.empty


def _bare(x: Any) -> Any:
    """What NumPy computes with. An array of NumPy's own is refused."""
    if isinstance(x, StrictArray):
        return x.inside
    if isinstance(x, np.ndarray):
        raise refuse("an array of NumPy among its own")
    if isinstance(x, list | tuple):
        return type(x)(_bare(each) for each in x) if not hasattr(x, "_fields") else x
    return x


def _index(where: Any) -> Any:
    if isinstance(where, tuple):
        return tuple(_bare(part) for part in where)
    return _bare(where)


def _wrapped(values: Any, source: StrictArray | None) -> Any:
    """Scalars are arrays too, without dimensions. A view knows whose memory it is in."""
    if isinstance(values, np.generic):
        return StrictArray(np.array(values))
    if isinstance(values, np.ndarray):
        if source is None or values.base is None or not np.may_share_memory(values, source.inside):
            return StrictArray(values)
        return StrictArray(values, source if source.base is None else source.base)
    if isinstance(values, list | tuple):
        return type(values)(_wrapped(each, source) for each in values)
    return values


class StrictGpu:
    """The emulator on such arrays. It is what `Staging` (comm/staged.py) needs, too."""

    xp: Any = StrictModule()

    def __init__(self) -> None:
        self._emulator = Emulator()
        self.gemm = _StrictGemm(self._emulator.gemm)
        self.n_synchronized = 0
        self.ran: set[str] = set()  # kernels

    @property
    def launches(self) -> int:
        return self._emulator.launches

    def to_device(self, x: np.ndarray) -> StrictArray:
        assert type(x) is np.ndarray
        return StrictArray(x.copy())

    def synchronize(self) -> None:
        self.n_synchronized += 1

    def pinned(self, size: int, dtype: np.dtype) -> np.ndarray:
        return np.full(size * dtype.itemsize, 0x5A, np.uint8).view(dtype)

    def copy_to_host(self, source: StrictArray, target: np.ndarray) -> None:
        target[...] = source.inside.reshape(target.shape)

    def copy_to_device(self, source: np.ndarray, target: StrictArray) -> None:
        target.inside[...] = source.reshape(target.shape)

    def launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, np.dtype | int],
        blocks: int | tuple[int, ...],
        threads: int,
        *args: Any,
    ) -> None:
        self.ran.add(kernel)
        self._emulator.launch(source, kernel, types, blocks, threads, *map(_bare, args))

    def start_reading(self, x: StrictArray) -> "_Read":
        return _Read(x.inside.copy())


class _Read(NamedTuple):
    values: np.ndarray

    def wait(self) -> np.ndarray:
        WAITS.n += 1
        return self.values


class _StrictGemm:
    def __init__(self, gemm: Any) -> None:
        self._gemm = gemm

    def product(self, a: Any, b: Any, out: Any, **keywords: Any) -> None:
        self._gemm.product(*map(_bare, (a, b, out)), **{name: _bare(x) for name, x in keywords.items()})

    def batched(self, a: Any, b: Any, out: Any, **keywords: Any) -> None:
        self._gemm.batched(*map(_bare, (a, b, out)), **keywords)
