"""Weights as a Hugging Face directory, read and written box by box by any number of ranks.

Writing: one rank calls `create_hf` (all files, full size), every rank writes its boxes with `HFWriter` and
flushes, and after a barrier one rank calls `commit_hf`. Until then the directory goes by another name, so it
is complete or absent. No rank ever holds the whole model.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minitrain.arrays.blocks import all_finite, row_blocks
from minitrain.arrays.types import Array
from minitrain.checkpoint.hf_config import CONFIG, hf_config, read_config_file, read_hf_model_config
from minitrain.checkpoint.hf_layout import place, stored_shapes
from minitrain.checkpoint.safetensors_file import FLOATS, Kind, StoredTensor, create, open_tensors
from minitrain.config import ModelConfig
from minitrain.durable import flush, rename
from minitrain.errors import CheckpointError
from minitrain.model.spec import ParamSpec, model_specs
from minitrain.small_file import read_small

WEIGHTS = "model.safetensors"
LARGEST_INDEX = 16 << 20  # bytes: some hundred thousand tensors
PART = r"[\w.-]{1,200}\.safetensors"  # the name of a file beside it
INDEX = "model.safetensors.index.json"  # {"weight_map": {tensor: file}}, where the weights fill several files
PREFIX = {"llama": "model.", "gpt2": "transformer."}  # absent in the files of some GPT-2 models
UNTIED = "lm_head.weight"
BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")  # constants, not weights
KEPT_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "minitrain_tokenizer")
KEPT_FILES = (
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


class HFReader:
    """The weights of `directory`. Raises CheckpointError unless they are exactly those of `model`."""

    def __init__(self, directory: str | Path, model: ModelConfig) -> None:
        self.directory, self.model = Path(directory), model
        stored = {name: t for name, t in _open_all(self.directory).items() if not BUFFERS.fullmatch(name)}
        prefix = PREFIX[model.arch]
        if not any(name.startswith(prefix) for name in stored):
            stored = {name if name == UNTIED else prefix + name: t for name, t in stored.items()}
        self.tensors = stored
        self._check()

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of the weights; where they have several, F32 or F64, so that it holds them all."""
        types: set[np.dtype[np.generic]] = {tensor.dtype for tensor in self.tensors.values()}
        if len(types) == 1:
            return types.pop()
        return FLOATS["F64"] if FLOATS["F64"] in types else FLOATS["F32"]

    def read(self, spec: ParamSpec, box: tuple[slice, ...]) -> Array:
        """The part `box` of parameter `spec` in our layout, a copy, of the type of the file.

        Raises CheckpointError if a weight in it is not finite.
        """
        where = place(spec, self.model)
        rows, columns, transposed = where.locate(spec.shape[0], box)
        values = self.tensors[where.tensor].read(rows, columns)
        if not all_finite(values.reshape(-1)):
            what = f"tensor {where.tensor} has weights that are not finite"
            raise CheckpointError(what, str(self.directory), "take weights from before that happened")
        if transposed:
            values = np.ascontiguousarray(values.T)
        return values.reshape([cut.stop - cut.start for cut in box])

    def _check(self) -> None:
        expected = stored_shapes(self.model)
        where, remedy = str(self.directory), "give weights that belong to its config.json"
        if missing := [name for name in expected if name not in self.tensors]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(f"tensor {missing[0]}{more} is missing", where, remedy)
        embedding = place(model_specs(self.model)[0], self.model)
        if self.model.tied:
            expected[UNTIED] = embedding.shape  # superfluous, but some files have it
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise CheckpointError(f"tensor {name} is none of a {self.model.arch} model's", where, remedy)
            if tensor.shape != expected[name]:
                what = f"tensor {name} has shape {list(tensor.shape)}, not {list(expected[name])}"
                raise CheckpointError(what, where, remedy)
            if tensor.dtype not in FLOATS.values():
                what = f"tensor {name} is of type {tensor.dtype}, none of {', '.join(FLOATS)}"
                raise CheckpointError(what, where, remedy)
        if self.model.tied and UNTIED in self.tensors:
            copy = self.tensors.pop(UNTIED)
            if not _same(copy, self.tensors[embedding.tensor]):
                raise CheckpointError(f"{UNTIED} differs from the embedding it is tied to", where, remedy)


class HFWriter:
    """Writes boxes into the files that `create_hf` made. Boxes of different ranks must not overlap."""

    def __init__(self, partial: Path, model: ModelConfig) -> None:
        self.path, self.model = partial / WEIGHTS, model
        self.tensors = open_tensors(self.path)

    def write(self, spec: ParamSpec, box: tuple[slice, ...], values: Array) -> None:
        """Stores `values` as the part `box` of parameter `spec`, converted to the type of the file. Raises
        OSError.
        """
        where = place(spec, self.model)
        rows, columns, transposed = where.locate(spec.shape[0], box)
        matrix = values.reshape(len(values), -1)
        self.tensors[where.tensor].write(rows, columns, matrix.T if transposed else matrix)

    def flush(self) -> None:
        """Hands everything written to the disk. Raises OSError."""
        flush(self.path)


def partial_directory(directory: str | Path) -> Path:
    """Where `directory` is written until it is complete."""
    path = Path(directory).absolute()
    return path.with_name(path.name + ".partial")


def check_hf_destination(directory: str | Path, model: ModelConfig) -> None:
    """Raise CheckpointError if `model` could not be written to `directory`: to be asked before training.

    Whether a directory can be made is known for certain only when it is: it is taken away again.
    """
    path = Path(directory).absolute()
    if model.arch == "gpt2" and model.kv_heads != model.heads:
        what = f"a GPT-2 directory cannot hold {model.kv_heads} key/value heads for {model.heads} heads"
        raise CheckpointError(what, str(directory), f"set model.kv_heads to {model.heads}, or do not export")
    plain = os.path.isdir(path) and not path.is_symlink()  # a directory can take the place of no other thing
    if os.path.lexists(path) and (not plain or any(path.iterdir())):
        what = "the directory is not empty" if plain else "there is a file or link of that name"
        raise CheckpointError(what, str(directory), "give a new one: nothing is overwritten")
    partial = partial_directory(path)
    missing = [place for place in (partial, *partial.parents) if not os.path.exists(place)]
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        what = f"the directory cannot be made ({problem.strerror})"
        raise CheckpointError(what, str(directory), "give one in a place that is writable") from None
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


@contextlib.contextmanager
def writing_weights(partial: Path) -> Iterator[None]:
    """An OSError within becomes a CheckpointError; the space is given back."""
    try:
        yield
    except OSError as problem:
        with contextlib.suppress(OSError):
            (partial / WEIGHTS).unlink()
        what = f"the weights cannot be written ({problem.strerror})"
        raise CheckpointError(what, str(partial), "check permissions and free space") from None


def create_hf(
    partial: Path,
    model: ModelConfig,
    dtype: np.dtype[np.generic],
    tokenizer: str | None,
    more: dict[str, object] | None = None,
) -> None:
    """Make the files: config.json with fields `more`, the weights at full size, still zero. On one rank."""
    with writing_weights(partial):
        partial.mkdir(parents=True, exist_ok=True)
        config = hf_config(model, dtype, tokenizer) | (more or {})
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        create(partial / WEIGHTS, {name: Kind(shape, dtype) for name, shape in stored_shapes(model).items()})


def commit_hf(partial: Path, directory: str | Path, replace: bool = False) -> None:
    """Makes all durable, then gives the directory its name in one step. On one rank, when all have flushed.

    With `replace`, a directory that has it keeps it, and gets the files one by one; others in it stay.
    """
    target = Path(directory).absolute()
    try:
        for path in (*partial.iterdir(), partial):
            flush(path)
        if replace and target.is_dir():
            for path in partial.iterdir():
                path.replace(target / path.name)
            flush(target)
            partial.rmdir()
        else:
            rename(partial, target)  # fails unless the name is free, or that of an empty directory
    except OSError as problem:
        what = f"the weights cannot be put in place ({problem.strerror})"
        raise CheckpointError(what, str(directory), f"find them, complete, in {partial}") from None


def convert(source: str | Path, destination: str | Path) -> list[str]:
    """Check the Hugging Face directory `source` and write it anew: one file of weights, of one type.

    Its tokenizer's files and special tokens go along. Returns notices.
    """
    model, notices = read_hf_model_config(source)
    check_hf_destination(destination, model)
    reader = HFReader(source, model)
    kept = {key: value for key, value in read_config_file(source).items() if key in KEPT_KEYS}
    partial = partial_directory(destination)
    create_hf(partial, model, reader.dtype, None, kept)
    writer = HFWriter(partial, model)
    with writing_weights(partial):
        for spec in model_specs(model):
            whole = tuple(slice(0, n) for n in spec.shape)
            writer.write(spec, whole, reader.read(spec, whole))
        writer.flush()
    for name in KEPT_FILES:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(Path(source) / name, partial / name)
    commit_hf(partial, destination)
    return notices


def _open_all(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of the one file of weights, or of all the files that the index names."""
    index = directory / INDEX
    if (directory / WEIGHTS).is_file() or not index.is_file():
        return open_tensors(directory / WEIGHTS)
    try:
        files = json.loads(read_small(index, LARGEST_INDEX))["weight_map"]
        names = sorted(set(files.values()))
        plain = all(re.fullmatch(PART, name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise CheckpointError(
            "the index does not map tensors to files beside it", str(index), "copy it again"
        )
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        part = open_tensors(directory / name)
        if wrong := [tensor for tensor in part if files.get(tensor) != name]:
            what = f"tensor {wrong[0]} is not where {INDEX} says"
            raise CheckpointError(what, str(directory / name), "copy the directory again")
        tensors |= part
    return tensors


def _same(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors of one shape hold the same values."""
    columns = slice(0, a.n_columns)
    blocks = row_blocks(a.shape[0], a.n_columns * a.dtype.itemsize)
    rows = (np.arange(block.start, block.stop) for block in blocks)
    return all(np.array_equal(a.read(those, columns), b.read(those, columns)) for those in rows)
