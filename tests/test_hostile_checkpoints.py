"""Checkpoints that are damaged, of another run, or made by somebody who means harm: what the user is told.

Whatever is wrong, `checkpoint verify` and a run that is to go on say the same, end with the same code, touch
nothing, and never take an earlier checkpoint instead without being told to. Thousands of cases by chance are
in tests/fuzz; here is one of each kind, with its message.
"""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tokenize
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from launch import REPOSITORY, run_minitrain
from safetensors.numpy import load_file, save_file

from minitrain.checkpoint.digests import digest
from minitrain.checkpoint.manifest import FILES, MODEL, STATE, WEIGHTS
from minitrain.cli import main

MANIFEST, OLD, NEW = "manifest.json", "step-00000002", "step-00000004"
TEXT = "".join(f"In the beginning was line {i}.\n" for i in range(100))
ARGUMENTS = (
    "--model.layers 1 --model.width 16 --model.heads 2 --model.ffn 24 --model.seq_len 16 "
    "--train.global_batch 4 --data.path text.txt --run.sample_tokens 0 --run.export_hf false "
    "--run.progress none --run.dir run"
)
PREFIX = "minitrain: error: "


class Said(NamedTuple):
    code: int
    out: str
    err: str


def minitrain(arguments: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments.split())
    return Said(code, out.getvalue(), err.getvalue())


def train(more: str = "") -> Said:
    """Six steps, whatever there is to go on from."""
    return minitrain(f"{ARGUMENTS} --train.steps 6 --run.resume auto {more}")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, which saved after the second and the fourth."""
    place = tmp_path_factory.mktemp("original")
    (place / "text.txt").write_text(TEXT)
    with contextlib.chdir(place):
        assert minitrain(f"{ARGUMENTS} --train.steps 4 --run.save_every 2").code == 0
    return place


@pytest.fixture
def newest(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newest checkpoint of a copy of it, in the current directory."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run/checkpoints") / NEW


def everything(directory: Path) -> dict[Path, bytes | None]:
    files = {path for path in directory.rglob("*") if path.is_file() and path.stat().st_size < 1 << 30}
    return {path: path.read_bytes() if path in files else None for path in directory.rglob("*")}


def refused(checkpoint: Path) -> str:
    """What both say; nothing has changed, and the run is still where it was."""
    before = everything(Path.cwd())
    verified, resumed = minitrain(f"checkpoint verify {checkpoint}"), train()
    assert verified.code == resumed.code == 4, (verified, resumed)
    assert resumed.err.startswith(PREFIX) and resumed.err.count("\n") == 1
    assert "goes on from" not in resumed.out
    after = everything(Path.cwd())
    assert {path: after[path] for path in before} == before and "loss" not in resumed.out
    assert verified.err == resumed.err
    return resumed.err.removeprefix(PREFIX).rstrip()


def forge(checkpoint: Path, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
    """A manifest for the files as they are, and its own checksum: nothing that is wrong shows by that."""
    fields = json.loads((checkpoint / MANIFEST).read_text())
    for name in FILES:
        raw = (checkpoint / name).read_bytes()
        fields["files"][name] = {"bytes": len(raw), "chunks": [digest(raw)] if raw else []}
    del fields["checksum"]
    change(fields)
    fields["checksum"] = digest(json.dumps(fields, sort_keys=True).encode())
    (checkpoint / MANIFEST).write_text(json.dumps(fields))


# --- damage


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_lost_or_won_a_byte(name: str, newest: Path) -> None:
    n_bytes = (newest / name).stat().st_size
    earlier = f"go on from an earlier one: --run.resume run/checkpoints/{OLD}"
    os.truncate(newest / name, n_bytes - 1)
    problem = f"the file has {n_bytes - 1} bytes, not {n_bytes}; {newest}/{name}; copy it again, or {earlier}"
    assert refused(newest) == problem
    os.truncate(newest / name, n_bytes + 1)
    assert f"the file has {n_bytes + 1} bytes, not {n_bytes}; " in refused(newest)
    done = minitrain(f"{ARGUMENTS} --train.steps 6 {earlier.partition(': ')[2]}")
    assert done.code == 0 and f"a later checkpoint is now {newest}.superseded-1" in done.out
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 6], "and the held-out loss"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_flipped_bit(name: str, newest: Path) -> None:
    rng, raw = np.random.default_rng(0), (newest / name).read_bytes()
    for position in rng.integers(0, 8 * len(raw), 40).tolist():
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        (newest / name).write_bytes(flipped)
        said = minitrain(f"checkpoint verify {newest}")
        assert said.code == 4 and f"; {newest}/{name}; " in said.err
    assert f"; {newest}/{name}; " in refused(newest)
    if name != MANIFEST:
        assert refused(newest).startswith(f"something in bytes 0 to {len(raw)} has changed; ")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_file_that_is_missing_or_is_none(name: str, newest: Path) -> None:
    """To wait for the other end of a pipe would be for ever."""
    aside = Path("aside")
    (newest / name).rename(aside)
    earlier = (
        f"{newest}/{name}; copy it again, or go on from an earlier one: --run.resume run/checkpoints/{OLD}"
    )
    if name != MANIFEST:  # without that, it is no checkpoint
        assert refused(newest).endswith(earlier)
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(aside.absolute(), path)):
        make(newest / name)
        assert refused(newest).endswith(earlier)
        shutil.rmtree(newest / name) if (newest / name).is_dir() else (newest / name).unlink()
    os.symlink("/dev/zero", newest / name)
    assert refused(newest).endswith(earlier)


def test_a_directory_without_manifest(newest: Path) -> None:
    (newest / MANIFEST).unlink()
    said = train()
    assert said.code == 4 and f"; {newest}/{MANIFEST}; copy it again, or go on from an earlier" in said.err


def test_files_that_do_not_belong_to_it(newest: Path) -> None:
    """They are not looked at."""
    (newest / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../b.safetensors"}}')
    (newest / "model-00001-of-00002.safetensors").write_bytes(b"?")
    (newest.parent / "step-00000099.0a1b2c3d.partial").mkdir()
    (newest.parent / "step-00000003").symlink_to(newest.absolute(), target_is_directory=True)
    (newest.parent / "step-99").mkdir()
    (newest.parent / "step-00000001").write_text("no directory")
    listed = minitrain("checkpoint ls run").out.splitlines()
    assert [line.split()[0] for line in listed] == ["checkpoint", OLD, NEW]
    assert minitrain("checkpoint verify run").code == 0
    said = train()
    assert said.code == 0 and f"goes on from step 4: {newest}" in said.out


@pytest.mark.parametrize("link", [True, False])
def test_what_is_no_directory_is_not_passed_over(link: bool, newest: Path) -> None:
    """It may be the newest checkpoint, which somebody has moved to another disk."""
    last = newest.parent / "step-00000099"
    last.symlink_to(newest.absolute(), target_is_directory=True) if link else last.write_text("")
    for resume in ("auto", "run", "run/checkpoints"):
        said = train(f"--run.resume {resume}")
        assert said.code == 4 and f"not a checkpoint's directory; {last}; put the direc" in said.err
        assert f"--run.resume {newest}" in said.err


@pytest.mark.parametrize(
    "content", [None, "", "step-00000002\n", "step-00000099\n", "../../elsewhere", "\0" * 9]
)
def test_what_latest_says_is_of_no_consequence(content: str | None, newest: Path) -> None:
    latest = newest.parent / "latest"
    latest.unlink()
    if content is not None:
        latest.write_text(content)
    said = train()
    assert said.code == 0 and f"goes on from step 4: {newest}" in said.out
    assert latest.read_text() == "step-00000006\n"


def test_four_ranks_refuse_it_once(newest: Path) -> None:
    """Each reads a part of every file; the damage is in the part of one of them."""
    raw = bytearray((newest / STATE).read_bytes())
    raw[-1] ^= 1
    (newest / STATE).write_bytes(raw)
    arguments = f"{ARGUMENTS} --train.steps 6 --train.micro_batch 1 --run.resume auto --parallel.dp 4"
    done = run_minitrain(*arguments.split(), ranks=4, cwd=Path.cwd(), timeout=60)
    assert done.returncode == 4 and done.stderr.count(PREFIX) == 1
    assert f"{PREFIX}something in bytes 0 to {len(raw)} has changed; {newest}/{STATE}; " in done.stderr


# --- another run


def test_another_model_or_optimizer(newest: Path) -> None:
    said = train("--model.width 32 --model.arch gpt2 --optim.name lion")
    assert said.code == 4
    first, *problems = said.err.splitlines()
    assert first == f"{PREFIX}3 problems in the checkpoint"
    remedy = f"{newest}; leave it out, or start from the weights alone with run.init_from"
    for what in (
        "model.width is 32, but 16",
        "model.arch is gpt2, but llama",
        "optim.name is lion, but adamw",
    ):
        assert f"  - {what} in the checkpoint; {remedy}" in problems


def test_what_may_change_is_named(newest: Path) -> None:
    """And what is not given is the checkpoint's, not the default."""
    said = minitrain(f"{ARGUMENTS} --train.steps 6 --run.resume auto --optim.lr 0.25 --train.seed 0")
    assert said.code == 0
    notices = [line.split("note")[1].strip() for line in said.out.splitlines() if line.startswith("  note")]
    assert [notice for notice in notices if not notice.startswith("data.path")] == [
        f"goes on from step 4: {newest}",
        "train.steps is 6, was 4 up to step 4",
        "optim.lr is 0.25, was 0.005 up to step 4",
    ]
    config = Path("run/config.toml").read_text()
    assert "global_batch = 4\n" in config and "width = 16\n" in config
    assert minitrain("--run.dir run --run.resume auto --run.progress none --train.steps 7").code == 0


@pytest.mark.parametrize("change, says", [
    (lambda text: text + "More.\n", r"\d+ tokens, not \d+"),
    (lambda text: text.replace("line 7", "line 8"), "other tokens"),
    (lambda text: "".join(reversed(text.splitlines(keepends=True))), "other tokens"),
])  # fmt: skip
def test_data_that_have_changed(change: Callable[[str], str], says: str, newest: Path) -> None:
    Path("text.txt").write_text(change(TEXT))
    said, problem = (
        train(),
        f"the data are not those of the checkpoint: {says}; text.txt; give the same data, or ",
    )
    assert said.code == 3 and re.match(f"{PREFIX}{problem}--run.accept_new_data true to go on", said.err)
    assert train("--run.accept_new_data true").code == 0


# --- malice


class Bomb:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape: list[float], start: int, stop: int) -> bytes:
    return json.dumps(
        {"m.embedding": {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}}
    ).encode()


FILES_OF_MALICE = {
    "a pickle": pickle.dumps(Bomb()),
    "nothing": b"",
    "a header of 2^63 bytes": header(b"{}", 1 << 63),
    "a header of 99 MB": header(b"{}", 99_000_000),
    "a header of 20 MB": header(b"{" + b" " * 20_000_000 + b"}"),
    "a deep header": header(b'{"a":' * 100_000),
    "a shape that overflows": header(entry([2**33, 2**33], 0, 0)),
    "a shape of fractions": header(entry([1e400, 1.5], 0, 4)) + bytes(4),
    "offsets beyond the end": header(entry([2], 0, 8)) + bytes(4),
    "offsets that fall": header(entry([2], 8, 0)) + bytes(8),
    "one name twice": header(entry([1], 0, 4)[:-1] + b"," + entry([1], 4, 8)[1:]) + bytes(8),
    "no UTF-8": header(b'{"\xff\xfe": {}}'),
}


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
@pytest.mark.parametrize("case", FILES_OF_MALICE)
def test_files_whose_checksums_are_right(case: str, name: str, newest: Path) -> None:
    (newest / name).write_bytes(FILES_OF_MALICE[case])
    forge(newest)
    assert f"; {newest}" in refused(newest)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
def test_a_tensor_s_name_is_no_path(name: str, newest: Path) -> None:
    tensors = load_file(newest / name)
    save_file(tensors | {"../../etc/passwd": np.zeros(1, np.float32)}, newest / name)
    forge(newest)
    assert "tensor ../../etc/passwd is none of " in refused(newest)


def files_elsewhere(fields: dict[str, Any]) -> None:
    fields["files"]["../../../canary.txt"] = fields["files"].pop(MODEL)


MANIFESTS_OF_MALICE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another file": (files_elsewhere, "a wrong entry: files ['../../../canary.txt', "),
    "step 0": (lambda fields: fields.update(step=0), "a wrong entry: step 0"),
    "a step of text": (lambda fields: fields.update(step="4"), "a wrong entry: step"),
    "no field": (lambda fields: fields.pop("data"), "a wrong entry: data"),
    "negative bytes": (lambda fields: fields["files"][MODEL].update(bytes=-1), "a wrong entry: files."),
    "chunks of text": (lambda fields: fields["files"][MODEL].update(chunks=["x"]), "a wrong entry: files."),
    "a model without width": (lambda fields: fields["config"]["model"].update(width=0), "model.width is 0"),
    "a rate of infinity": (
        lambda fields: fields["config"]["optim"].update(lr=float("inf")),
        "optim.lr is inf",
    ),
    "another format": (lambda fields: fields.update(format="zip"), "is not that of a minitrain checkpoint"),
    "a later version": (lambda fields: fields.update(version=9), "is of version 9, and this minitrain reads"),
}


@pytest.mark.parametrize("case", MANIFESTS_OF_MALICE)
def test_manifests_whose_checksum_is_right(case: str, newest: Path) -> None:
    change, says = MANIFESTS_OF_MALICE[case]
    Path("canary.txt").write_text("of somebody else")
    forge(newest, lambda fields: change(fields) and None)
    assert says in refused(newest)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 100_000, b"9" * 10_000]
)
def test_manifests_that_are_none(content: bytes, newest: Path) -> None:
    (newest / MANIFEST).write_bytes(content)
    assert f"; {newest}/{MANIFEST}; copy it again" in refused(newest)


def test_a_manifest_without_end(newest: Path) -> None:
    with (newest / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # of zeros, which take no space
    assert "more than" in refused(newest)


FORBIDDEN = {
    "pickle": r"\b(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\b",
    "pickle in NumPy's files": r"allow_pickle",
    "pickle in other libraries": r"(torch|yaml) \. load",
    "text as code": r"\b(eval|exec) \(",
    "pickle in MPI": r"comm \. (i?send|i?recv|sendrecv|bcast|(all)?gather|scatter|(all)?reduce|alltoall) \(",
}
"""What may run somebody else's code, or lead to it. mpi4py's methods in lower case are of that kind;
elsewhere `comm` is ours, whose methods move buffers.
"""


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_the_package_does_not_use(what: str) -> None:
    codes = {str(file): code_of(file) for file in (REPOSITORY / "minitrain").rglob("*.py")}
    assert len(codes) > 50
    if what == "pickle in MPI":
        codes = {file: code for file, code in codes.items() if re.search(r"(from|import) mpi4py", code)}
        assert [Path(file).name for file in codes] == ["mpi.py"]
    assert not {file: match[0] for file, code in codes.items() if (match := re.search(FORBIDDEN[what], code))}


@cache
def code_of(file: Path) -> str:
    """Its code, without comments and without what is quoted; a space between any two words or signs."""
    with tokenize.open(file) as text:
        tokens = list(tokenize.generate_tokens(text.readline))
    left_out = {tokenize.COMMENT, tokenize.STRING}
    return " ".join('""' if token.type in left_out else token.string for token in tokens)
