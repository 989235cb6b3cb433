"""Checkpoints that accident or malice has changed: a clean error, or exactly what the files say.

Without new checksums (accident) a case is refused, or not one byte of the files and no entry of the manifest
differs. With new ones (malice) it may be accepted: then the tensors are those in its files, read by the
safetensors library, and the configuration is the one in its manifest.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fuzz.campaign import campaign, run_cases
from fuzz.mutations import ENTRIES, HARMLESS, Entry, Rng, bend, damaged, disarranged, json_text, name_of, pick
from fuzz.sandbox import Sandbox
from fuzz.stored import bent
from safetensors.numpy import load_file

from minitrain.arguments import parse
from minitrain.arrays.narrow import compute_type
from minitrain.build import Run, build
from minitrain.checkpoint.digests import CHUNK, digest
from minitrain.checkpoint.listing import list_checkpoints, verify
from minitrain.checkpoint.manifest import (
    FILES,
    MODEL,
    STATE,
    WEIGHTS,
    Manifest,
    read_manifest,
    to_text,
    trusted,
)
from minitrain.checkpoint.saving import Saver
from minitrain.comm.single import SingleComm
from minitrain.config import Config
from minitrain.config_text import from_json, to_json
from minitrain.errors import CheckpointError, ConfigError, DataError
from minitrain.observe.recorder import SilentRecorder
from minitrain.precision import PRECISIONS
from minitrain.prepare import check_settings, prepare
from minitrain.resume import continued, find_start
from minitrain.settings import read_settings
from minitrain.train import train

TEXT = "In the beginning God created the heaven and the earth.\n" * 20
STEP, MANIFEST = "step-00000002", "manifest.json"
SIZES = (
    "--model.layers 2 --model.width 8 --model.heads 2 --model.seq_len 8 --train.steps 2 "
    "--train.global_batch 4 --train.micro_batch 2 --data.holdout 0.1 "
    "--run.sample_tokens 0 --run.export_hf false"
)
BASES = {  # whose manifests and states differ in kind
    "adamw": "--model.ffn 12",
    "adafactor": "--model.arch gpt2 --optim.name adafactor --optim.schedule wsd",
    "fp16": "--precision fp16 --model.kv_heads 1",
    "fp8": "--precision fp8 --optim.name muon",
}


class Base(NamedTuple):
    """A run that is as it should be."""

    run: Path
    data: Path


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    root = tmp_path_factory.mktemp("bases")
    data = root / "text.txt"
    data.write_text(TEXT)
    found = []
    for name, options in BASES.items():
        words = f"{SIZES} {options} --data.path {data} --run.dir {root / name}".split()
        train(from_json(prepare(words, 1).config), SingleComm(), SilentRecorder())
        found.append(Base(root / name, data))
    return found


# Damage: each function gets the directory of a checkpoint.


def _bytes(directory: Path, elsewhere: Path, rng: Rng) -> None:
    contents = {path: path.read_bytes() for path in sorted(directory.iterdir())}
    path = pick(rng, list(contents))
    path.write_bytes(damaged(contents[path], rng, list(contents.values())))


def _manifest(directory: Path, elsewhere: Path, rng: Rng) -> None:
    path = directory / MANIFEST
    tree = json.loads(path.read_text())
    for _ in range(int(rng.integers(1, 3))):
        bend(
            tree,
            rng,
            pick(rng, [(), ("config",), ("config",), ("step", "updates", "tokens", "loss_scale", "data")]),
        )
    path.write_bytes(json_text(tree).encode(errors="surrogatepass"))


def _header(directory: Path, elsewhere: Path, rng: Rng) -> None:
    path = directory / pick(rng, [WEIGHTS, STATE])
    path.write_bytes(bent(path.read_bytes(), rng))


def _model(directory: Path, elsewhere: Path, rng: Rng) -> None:
    path = directory / MODEL
    path.write_bytes(json_text(bend(json.loads(path.read_text()), rng)).encode(errors="surrogatepass"))


DAMAGE: list[Callable[[Path, Path, Rng], None]] = [
    _bytes, _bytes, _bytes, _manifest, _manifest, _header, _header, _model, disarranged,
]  # fmt: skip


def with_new_checksums(directory: Path) -> None:
    """What a forger does: the manifest names the files as they are, and its own checksum is right."""
    path = directory / MANIFEST
    if not path.is_file() or path.is_symlink():
        return
    try:
        fields = json.loads(path.read_bytes().decode(errors="surrogatepass"))
        for name, file in fields["files"].items():
            small = (directory / name).is_file() and (directory / name).stat().st_size < CHUNK
            raw = (directory / name).read_bytes() if small else b""
            chunks = [digest(raw[start : start + CHUNK]) for start in range(0, len(raw), CHUNK)]
            if name in FILES and small:
                file |= {"bytes": len(raw), "chunks": chunks}
        fields.pop("checksum", None)
        fields["checksum"] = digest(json.dumps(fields, sort_keys=True).encode())
        path.write_text(json.dumps(fields))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # it is beyond repair


# Reading, in all the ways there are.


def resumed(run: Path) -> tuple[Config, Manifest, Run]:
    """As `--run.resume auto` does, up to the first step, but for the lock that it takes on its directory."""
    settings = read_settings(parse(["--run.resume", "auto", "--run.dir", str(run)]))
    start = find_start(settings)
    assert start
    config, _ = check_settings(continued(settings, start, 1), 1, start)
    config, manifest = from_json(to_json(config)), trusted(to_text(start.manifest))  # as on any rank
    return config, manifest, build(config, SingleComm(), manifest)


def one_case(number: int, bases: list[Base], sandbox: Sandbox) -> bool:
    rng = np.random.default_rng([1, number])
    base, forged = pick(rng, bases), bool(rng.random() < 0.5)
    sandbox.renew(base.run)
    directory = sandbox.case / "checkpoints" / STEP
    pick(rng, DAMAGE)(directory, sandbox.elsewhere, rng)
    if forged:
        with_new_checksums(directory)
    return is_accepted(base, forged, sandbox)


def is_accepted(base: Base, forged: bool, sandbox: Sandbox) -> bool:
    """Whether the checkpoint in the sandbox, made from `base`, is taken; if it is, for what it is."""
    directory = sandbox.case / "checkpoints" / STEP
    codes = {CheckpointError.exit_code} | ({ConfigError.exit_code, DataError.exit_code} if forged else set())

    listed = sandbox.read(lambda: list_checkpoints(str(sandbox.case)), {CheckpointError.exit_code})
    assert listed is None or all(line.isprintable() for line in listed.split("\n")), repr(listed)
    verified = sandbox.read(lambda: verify(directory), {CheckpointError.exit_code})
    more = (base.data, sandbox.elsewhere) if forged else (base.data,)  # data.path may be anything
    found = sandbox.read(lambda: resumed(sandbox.case), codes, *more)
    if not forged:
        assert (verified is None) == (found is None), "verify and resuming are of two opinions"
    if found is None:
        return False
    assert verified, "a checkpoint that verify refuses"
    config, manifest, run = found
    if not forged:
        original = base.run / "checkpoints" / STEP
        assert all((directory / name).read_bytes() == (original / name).read_bytes() for name in FILES)
        assert manifest == read_manifest(original)
    require_stated(asdict(manifest), json.loads((directory / MANIFEST).read_text()))
    require_restored(config, manifest, run, directory, sandbox.root / "again")
    return True


def require_stated(known: Any, said: Any) -> None:
    """What was understood is what the manifest says: no value was turned into another."""
    if isinstance(known, dict):
        for key in known.keys() & said.keys():
            require_stated(known[key], said[key])
    else:
        known = list(known) if isinstance(known, tuple) else known
        assert known in (said, float(said) if isinstance(said, int) else said), f"{known!r} is not {said!r}"


def require_restored(config: Config, manifest: Manifest, run: Run, directory: Path, again: Path) -> None:
    """Written once more, the state of the trainer is that of the files."""
    trainer, kept = run.trainer, run.trainer.judge.kept()
    assert kept.updates == manifest.updates
    if trainer.stage.precision.scales_loss and manifest.loss_scale:
        assert [kept.scale, kept.good_steps, kept.tolerated] == list(asdict(manifest.loss_scale).values())
    shutil.rmtree(again, ignore_errors=True)
    Saver(config, trainer, again, run.data, run.tokens.kind).save(manifest.step, manifest.tokens, last=True)
    types = PRECISIONS[config.precision]
    for name in (WEIGHTS, STATE):
        said, held = load_file(directory / name), load_file(again / f"step-{manifest.step:08}" / name)
        for tensor, values in held.items():
            if tensor not in said:  # superfluous, or of fp8
                assert tensor.startswith("fp8."), tensor
            elif name == WEIGHTS or config.optim.name != "adam8bit":  # 8 bits keep what they can
                first = compute_type(types.param) if name == WEIGHTS else values.dtype
                expected = said[tensor].astype(first).astype(values.dtype)
                assert np.array_equal(expected, values, equal_nan=True), f"{name}: {tensor}"


@pytest.mark.parametrize("action", ENTRIES, ids=name_of)
def test_every_entry(action: Entry, bases: list[Base], sandbox: Sandbox) -> None:
    for name, other in zip((MANIFEST, *FILES), (STATE, WEIGHTS, STATE, MODEL), strict=True):
        sandbox.renew(bases[0].run)
        directory = sandbox.case / "checkpoints" / STEP
        action(directory / name, directory / other, sandbox.elsewhere)
        assert is_accepted(bases[0], False, sandbox) == (action in HARMLESS), name


@campaign(in_suite=250, in_all=8_000)
def test_checkpoints(numbers: range, bases: list[Base], sandbox: Sandbox) -> None:
    for base in bases:  # also: what is imported late is now there
        sandbox.renew(base.run)
        assert sandbox.read(lambda: verify(sandbox.case / "checkpoints" / STEP), ())
        assert sandbox.read(lambda: resumed(sandbox.case), (), base.data)
    run_cases(numbers, lambda number: one_case(number, bases, sandbox))
