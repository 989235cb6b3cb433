"""manifest.json: what a checkpoint is and which bytes belong to it. Its last entry is a checksum of the rest.

A checkpoint is a directory of five files with fixed names. Nothing in the manifest is ever used as a path.
"""

import functools
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrain.checkpoint.catalogue import MANIFEST, STATE, remedy_for
from minitrain.checkpoint.digests import digest, n_chunks
from minitrain.config import Config
from minitrain.config_text import from_json
from minitrain.errors import CheckpointError
from minitrain.resolve import ranks_wanted, resolve
from minitrain.rules import LAYOUT_RULES, MODEL_RULES, breaches
from minitrain.small_file import read_small
from minitrain.validate import out_of_range

if TYPE_CHECKING:
    from pydantic import TypeAdapter

WEIGHTS, MODEL = "model.safetensors", "config.json"
FILES = (MODEL, WEIGHTS, STATE)
FORMAT, VERSION = "minitrain checkpoint", 1
LARGEST = 16 << 20  # bytes of a manifest: one of 7 TB of files
_HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class StoredFile:
    """A file's size, and the checksum of each chunk of it (digests.py)."""

    bytes: int
    chunks: list[str]


@dataclass(frozen=True)
class DataSeen:
    """The token stream, to notice another one."""

    tokens: int
    digest: str


@dataclass(frozen=True)
class ScaleSeen:
    """The loss scale and what it remembers (optim/loss_scale.py)."""

    scale: float
    good_steps: int
    tolerated: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is not a tensor. With random numbers that are functions of (seed, place) and a batch
    that is one of (seed, step), no generator and no position in the data has to be kept.
    """

    format: str
    version: int
    step: int  # that were taken; the next is step + 1
    updates: int  # of the optimizer: fewer, where steps were skipped
    tokens: int  # that were trained on
    loss_scale: ScaleSeen | None
    data: DataSeen
    config: Config  # resolved, of the run that wrote it
    software: dict[str, str]  # versions, for information
    written: str  # UTC
    files: dict[str, StoredFile]


def to_text(manifest: Manifest) -> str:
    """JSON with the checksum."""
    fields = asdict(manifest)
    return json.dumps(fields | {"checksum": _checksum(fields)}, indent=1) + "\n"


def trusted(text: str) -> Manifest:
    """The inverse of `to_text`, for what another rank has checked."""
    fields = json.loads(text)
    del fields["checksum"]
    scale = fields["loss_scale"]
    return Manifest(**fields | {
        "loss_scale": scale and ScaleSeen(**scale),
        "data": DataSeen(**fields["data"]),
        "config": from_json(json.dumps(fields["config"])),
        "files": {name: StoredFile(**file) for name, file in fields["files"].items()},
    })  # fmt: skip


def read_manifest(directory: Path) -> Manifest:
    """Checked from beginning to end, but for the files it speaks of. Raises CheckpointError."""
    path = directory / MANIFEST
    try:
        fields = json.loads(read_small(path, LARGEST, follow=False))
        checksum = fields.pop("checksum", None) if isinstance(fields, dict) else None
        right = checksum == _checksum(fields)
    except (OSError, ValueError, RecursionError) as problem:
        why = (problem.strerror if isinstance(problem, OSError) else "") or str(problem)
        raise _damaged(path, f"cannot be read ({' '.join(why.split())[:200]})") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise _damaged(path, f"is not that of a {FORMAT}")
    if fields.get("version") != VERSION:
        what = f"is of version {str(fields.get('version'))[:20]}, and this minitrain reads version {VERSION}"
        raise CheckpointError(f"{MANIFEST} {what}", str(path), "use the minitrain that wrote it")
    if not right:
        raise _damaged(path, "does not have the checksum that it names")
    return _typed(path, fields)


def _typed(path: Path, fields: dict[str, Any]) -> Manifest:
    from pydantic import ValidationError

    try:
        manifest = _reader().validate_json(json.dumps(fields), strict=True)
    except (ValidationError, RecursionError) as problem:
        first = (
            problem.errors()[0] if isinstance(problem, ValidationError) else {"loc": (), "msg": "too deep"}
        )
        place = ".".join(map(str, first["loc"]))[:100]
        raise _damaged(path, f"has a wrong entry: {place}: {first['msg'][:200]}") from None
    if wrong := _wrong_entry(manifest):
        raise _damaged(path, f"has a wrong entry: {wrong}")
    return manifest


@functools.cache
def _reader() -> "TypeAdapter[Manifest]":
    """Made once, as it takes longer than all it reads."""
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _wrong_entry(manifest: Manifest) -> str | None:
    scale = manifest.loss_scale
    if manifest.step < 1 or not 0 <= manifest.updates <= manifest.step or manifest.tokens < 0:
        return f"step {manifest.step}, updates {manifest.updates}, tokens {manifest.tokens}"
    if scale and not (0 < scale.scale < math.inf and scale.good_steps >= 0):
        return f"loss_scale {scale}"
    if set(manifest.files) != set(FILES):
        return f"files {sorted(manifest.files)}"[:200]
    for name, file in manifest.files.items():
        right = len(file.chunks) == n_chunks(file.bytes) and all(map(_HEX.fullmatch, file.chunks))
        if file.bytes < 0 or not right:
            return f"files.{name}: {file.bytes} bytes in {len(file.chunks)} chunks"
    return _wrong_config(manifest.config)


def _wrong_config(config: Config) -> str | None:
    """It ran once, so its numbers are complete, and model and layout legal on as many ranks as it names."""
    for problem in out_of_range(config).values():
        return problem.what
    n_ranks = ranks_wanted(config.parallel)
    if resolve(config, {}, n_ranks).config != config:
        return "the configuration is not complete"
    problems = breaches(MODEL_RULES + LAYOUT_RULES, config, n_ranks, {"data.tokenizer"})
    return problems[0].what if problems else None


def _checksum(fields: dict[str, Any]) -> str:
    return digest(json.dumps(fields, sort_keys=True).encode())


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{MANIFEST} {what}", str(path), remedy_for(path.parent))
