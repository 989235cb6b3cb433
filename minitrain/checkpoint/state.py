"""What training remembers beside the weights, as tensors whose names and shapes know nothing of the layout.

    m.layers.0.attn.q            a moment of a parameter, of the parameter's whole shape; 8-bit ones in fp32
    m.largest.layers.0.attn.q    of an 8-bit one, the largest magnitude of each block: a row for each tp rank
    rows.layers.0.attn.q         Adafactor: one number for every index of an axis
    fp8.layers.0.attn.q          [3, 16]: the largest magnitudes of a map's three factors in the last steps

Blocks of 8 bits lie in a rank's box, so with another tp they are made anew from the values. All else is the
same for every layout.
"""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import on_host, put
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array
from minitrain.checkpoint.parts import Part, parts_to_read, parts_to_write
from minitrain.checkpoint.safetensors_file import Kind, StoredTensor
from minitrain.comm.grid import Grid
from minitrain.config import Config
from minitrain.model.spec import ParamSpec, block_specs, model_specs
from minitrain.ops.fp8 import HISTORY, Fp8Linear
from minitrain.optim.optimizer import Elementwise, Hyper, Optimizer, Piece, State, Stored
from minitrain.optim.quantised import BLOCK, Quantised
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Held, Unit
from minitrain.precision import PRECISIONS
from minitrain.step import Trainer

StateFile = dict[str, StoredTensor]


class Moment(NamedTuple):
    """How an optimizer keeps one moment of a parameter: for each element, maybe in blocks of 8 bits, or as a
    vector by itself that every rank has whole.
    """

    name: str
    kind: Kind
    for_each: bool
    in_blocks: bool = False


def state_tensors(config: Config, optimizer: Optimizer) -> dict[str, Kind]:
    """All tensors of the file, for the whole model."""
    precision = PRECISIONS[config.precision]
    tensors: dict[str, Kind] = {}
    for spec in model_specs(config.model):
        for moment in moments_of(optimizer, spec, precision.master):
            tensors[f"{moment.name}.{spec.name}"] = moment.kind
            if moment.in_blocks:
                tensors[f"{moment.name}.largest.{spec.name}"] = _kind_of_largest(spec, config)
    if precision.fp8:
        specs = (spec for layer in range(config.model.layers) for spec in block_specs(config.model, layer))
        scaled = Kind((len(Fp8Linear._fields), HISTORY), np.dtype(np.float32))
        tensors |= {f"fp8.{spec.name}": scaled for spec in specs if spec.group == "matrix"}
    return tensors


def n_numbers(config: Config, optimizer: Optimizer) -> int:
    """The weights of the whole model, and the moments that there are for each of them."""
    master = PRECISIONS[config.precision].master
    numbers = 0
    for spec in model_specs(config.model):
        numbers += spec.size * (1 + sum(m.for_each for m in moments_of(optimizer, spec, master)))
    return numbers


def moments_of(optimizer: Optimizer, spec: ParamSpec, dtype: np.dtype[np.generic]) -> list[Moment]:
    """What the optimizer remembers of a parameter that is updated in `dtype`: it is asked about none of the
    parameter's elements, and what then is empty is kept for each element.
    """
    nothing, nowhere = np.zeros(0, compute_type(dtype)), tuple(slice(0, 0) for _ in spec.shape)
    if isinstance(optimizer, Elementwise):
        state: State = optimizer.init(np.zeros(0, dtype))
    else:
        state = dict(optimizer.init(
            Piece(spec.name, spec.group, spec.shape, nowhere, slice(0, 0), False, nothing, nothing, {},
                  Hyper(0.0, 0.0, 0))
        ))  # fmt: skip
    moments = []
    for name, stored in state.items():
        if isinstance(stored, Quantised):
            moments.append(Moment(name, Kind(spec.shape, np.dtype(np.float32)), True, in_blocks=True))
        else:
            assert isinstance(stored, np.ndarray)
            shape = stored.shape if stored.size else spec.shape
            moments.append(Moment(name, Kind(shape, dtype), for_each=not stored.size))
    return moments


class Snapshot(NamedTuple):
    """What this rank would write, in the host's memory: for each unit of its stage the weights, in the type
    in which they are updated, and what the optimizer remembers; and the maxima that fp8 remembers, by map.
    """

    masters: list[Array]
    states: list[State]
    maxima: dict[str, Array]

    @staticmethod
    def of(stage: Stage, copied: bool) -> "Snapshot":
        """The arrays themselves, to be written before they change, or copies; of a GPU's always copies."""
        maxima = {name: np.stack([on_host(t.history) for t in f8]) for name, f8 in _fp8(stage)}
        masters = [_taken(unit.master, copied) for unit in stage.units]
        states = [
            {name: _taken_moment(vector, copied) for name, vector in unit.state.items()}
            for unit in stage.units
        ]
        return Snapshot(masters, states, maxima)


def _taken(x: Array, copied: bool) -> Array:
    return x.copy() if copied and isinstance(x, np.ndarray) else on_host(x)


def _taken_moment(vector: Stored, copied: bool) -> Stored:
    if not isinstance(vector, Quantised):
        return _taken(vector, copied)
    taken = copy.copy(vector)
    taken.codes, taken.largest = _taken(vector.codes, copied), _taken(vector.largest, copied)
    return taken


def write_state(file: StateFile, trainer: Trainer, snapshot: Snapshot) -> int:
    """This rank's parts of everything but the weights; returns how many moments of single weights that were.
    Raises OSError.
    """
    n_written = 0
    stage, grid, optimizer = trainer.stage, trainer.grid, trainer.updater.optimizer
    for unit, state in zip(stage.units, snapshot.states, strict=True):
        for part in parts_to_write(unit, grid):
            for moment, vector, start in _moments(optimizer, unit, state, part.held):
                if moment.for_each:
                    values = _loaded(vector, slice(start + part.elements.start, start + part.elements.stop))
                    _write_box(file[f"{moment.name}.{part.held.spec.name}"], part, values)
                    n_written += values.size
        if grid.replica.rank == 0:
            for held, speaks in zip(unit.held, unit.speaks_for, strict=True):
                for moment, vector, start in _moments(optimizer, unit, state, held) if speaks else ():
                    if isinstance(vector, Quantised):
                        _write_largest(
                            file[f"{moment.name}.largest.{held.spec.name}"], held, vector, start, grid
                        )
        if (grid.dp.rank, grid.tp.rank) == (0, 0) and any(
            unit.speaks_for
        ):  # of two copies, the one that counts
            for held in unit.held:
                for moment, vector, _ in _moments(optimizer, unit, state, held):
                    if not moment.for_each:
                        assert isinstance(vector, np.ndarray)
                        _write_whole(file[f"{moment.name}.{held.spec.name}"], vector.reshape(-1, 1))
    if (grid.dp.rank, grid.tp.rank) == (0, 0):
        for name, maxima in snapshot.maxima.items():
            _write_whole(file[f"fp8.{name}"], maxima)
    return n_written


def read_state(file: StateFile, trainer: Trainer, same_tp: bool) -> None:
    """Everything that this rank holds. What the file has not (fp8) stays as it is. Raises CheckpointError.

    `same_tp`: blocks of 8 bits are those that were saved; else they are made anew.
    """
    stage, optimizer, grid = trainer.stage, trainer.updater.optimizer, trainer.grid
    for unit in stage.units:
        for held in unit.held:
            for moment, vector, start in _moments(optimizer, unit, unit.state, held):
                tensor = file[f"{moment.name}.{held.spec.name}"]
                where = slice(start, start + held.run.stop - held.run.start)
                if isinstance(vector, Quantised):  # moment.in_blocks
                    largest = None
                    if same_tp:
                        largest = _read_largest(file[f"{moment.name}.largest.{held.spec.name}"], held, grid)
                    values = np.empty(where.stop - where.start, tensor.dtype)
                    _read_held(tensor, held, values)
                    _put_quantised(vector, where, values.astype(np.float32, copy=False), largest)
                elif moment.for_each:
                    target = vector[where]
                    on_gpu = not isinstance(target, np.ndarray)
                    values = np.empty(target.size, target.dtype) if on_gpu else target
                    _read_held(tensor, held, values)
                    if on_gpu:
                        put(target, values)
                else:
                    put(vector, _read_whole(tensor).reshape(-1))
    for name, f8 in _fp8(stage):
        if f"fp8.{name}" in file:
            for tensor8, history in zip(f8, _read_whole(file[f"fp8.{name}"]), strict=True):
                tensor8.restore(history)


def _put_quantised(vector: Quantised, where: slice, values: Array, largest: Array | None) -> None:
    """Made on the host, then put where the vector is."""
    made = Quantised(values.size, vector.signed)
    made.save(slice(0, values.size), values, largest)
    put(vector.codes[where], made.codes)
    put(vector.largest[vector.blocks(where)], made.largest)


def _moments(
    optimizer: Optimizer, unit: Unit, state: State, held: Held
) -> Iterator[tuple[Moment, Stored, int]]:
    """Each moment of what is held of a parameter: the vector it is in, and where it starts there."""
    for moment in moments_of(optimizer, held.spec, unit.master.dtype):
        if isinstance(optimizer, Elementwise):
            yield moment, state[moment.name], held.where.start
        else:
            yield moment, state[f"{held.spec.name.removeprefix(unit.prefix)}.{moment.name}"], 0


def _fp8(stage: Stage) -> Iterator[tuple[str, Fp8Linear]]:
    for unit, scales in zip(stage.blocks, stage.scales, strict=True):
        for name, f8 in scales.items():
            yield unit.prefix + name, f8


def _loaded(vector: Stored, where: slice) -> Array:
    if isinstance(vector, Quantised):
        start = where.start // BLOCK * BLOCK  # it is read from the beginning of a block
        return vector.load(slice(start, where.stop))[where.start - start :]
    assert isinstance(vector, np.ndarray)
    return vector[where]


def _kind_of_largest(spec: ParamSpec, config: Config) -> Kind:
    """[tp ranks with a box of their own, blocks of the largest box]"""
    tp = config.parallel.tp
    assert tp
    boxes = [spec.tp_slice(rank, tp) for rank in range(tp)]
    most = max(math.prod(cut.stop - cut.start for cut in box) for box in boxes)
    n_boxes = 1 if spec.tp_dim is None else tp // spec.tp_replicas(tp)
    return Kind((n_boxes, -(-most // BLOCK)), np.dtype(np.float32))


def _place_of_largest(held: Held, grid: Grid) -> tuple[Array, slice]:
    """The row of this rank's box, and the columns of the run that it holds."""
    row = 0 if held.spec.tp_dim is None else grid.tp.rank // held.spec.tp_replicas(grid.tp.size)
    return np.array([row]), slice(held.run.start // BLOCK, -(-held.run.stop // BLOCK))


def _write_largest(tensor: StoredTensor, held: Held, vector: Quantised, start: int, grid: Grid) -> None:
    blocks = vector.blocks(slice(start, start + held.run.stop - held.run.start))
    tensor.write(*_place_of_largest(held, grid), vector.largest[blocks][None])


def _read_largest(tensor: StoredTensor, held: Held, grid: Grid) -> Array:
    return tensor.read(*_place_of_largest(held, grid)).reshape(-1)


def _write_box(tensor: StoredTensor, part: Part, values: Array) -> None:
    rows, columns = _rows_and_columns(part.box)
    tensor.write(rows, columns, values.reshape(len(rows), -1))


def _read_held(tensor: StoredTensor, held: Held, values: Array) -> None:
    """Into `values`, a vector of what the rank holds of the parameter, which may be of another type."""
    for part in parts_to_read(held):
        rows, columns = _rows_and_columns(part.box)
        if values.dtype == tensor.dtype:
            tensor.read_into(rows, columns, values[part.elements].reshape(part.shape[0], -1))
        else:
            values[part.elements] = tensor.read(rows, columns).reshape(-1)


def _rows_and_columns(box: tuple[slice, ...]) -> tuple[Array, slice]:
    return np.arange(box[0].start, box[0].stop), box[1] if len(box) == 2 else slice(0, 1)


def _write_whole(tensor: StoredTensor, values: Array) -> None:
    tensor.write(np.arange(len(values)), slice(0, tensor.n_columns), values)


def _read_whole(tensor: StoredTensor) -> Array:
    return tensor.read(np.arange(tensor.shape[0]), slice(0, tensor.n_columns))
