"""Configurations that nobody meant: TOML files and command lines. A clean error, or the values in them.

What is accepted is printed by --print-config, and there every value of the file stands as Python's own reader
of TOML sees it; and what is printed, read again, gives itself.
"""

import contextlib
import io
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.campaign import campaign, run_cases
from fuzz.mutations import TEXTS, Rng, damaged, pick
from fuzz.sandbox import Sandbox

from minitrain.errors import CheckpointError, ConfigError, DataError
from minitrain.fields import known_fields
from minitrain.prepare import prepare

CODES = {ConfigError.exit_code, DataError.exit_code, CheckpointError.exit_code}  # the last two: of paths
OPTIONS = (
    "--model.layers 3 --model.width 32 --optim.warmup 3",
    "--model.arch gpt2 --parallel.zero 2 --optim.name lamb --optim.schedule wsd --train.steps 30",
    "--precision fp16 --loss_scale.initial 1024 --optim.betas 0.8 0.9 --run.save_every 5 --run.keep 3",
)

VALUES = (
    "true", "false", "0", "1", "-1", "2", "3", "4", "16", "100_000", "0x10", "0b11", "1e3", "1.5", "-0.0",
    "0.1", "inf", "-inf", "nan", "1e400", "1e-400", str(2**31), str(2**63 - 1), str(2**63), "9" * 400,
    "9" * 5000, "0x" + "f" * 4000, "-" + "9" * 30, "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "''",
    '""', '"fp16"', '"adam"', '"gpt2"', '"1"', '"auto"', "'a/b'", '"a\\u0000b"', '"\\u001b[2J"', '"Käse 🧀"',
    "'''\nlines\n'''", "'" + "x" * 300 + "'", "'" + "x/" * 2000 + "'", "'" + "y" * 30_000 + "'", "[]", "{}",
    "[1, 2]", "[0.9, 0.95]", "[0.9, 0.95, 0.99]", "[nan, 0.5]", '["a"]', "{a = 1}", "{layers = 2}",
    "[" * 100 + "]" * 100, "[" * 5000, "[" + "0," * 9000 + "]", "{a = " * 400 + "1" + "}" * 400, "", "x", "=",
    "'", "\0", "# no value",
)  # fmt: skip
KEYS = (
    "layer", "layers", "lr", "model.layers", "optim", "model", '""', '"a b"', "Layers", "ünï", "a" * 300,
    "path", "a.b.c.d", ".".join("a" * 12_000), "layers.x", '"model.layers"', "seed", "precision", "[model]",
    "[[optim]]", "[run.x]", "[]", "[", "__class__", "name", "dir", "resume", "init_from", "export_hf",
)  # fmt: skip
WORDS = (
    "--", "-", "---", "--=", "=", "-x", "-h5", "--debug=1", "--dry-run", "--config", "--config=",
    "--precision", "train", "generate", "--model", "--model.", "--.", "--model.layers.x", "--run.", "@file",
    "%s", "$HOME", "*", "\n", "\udcff", "é" * 50, "--" + "x" * 5000, "--optim.betas=[0.9,0.95]",
    "--optim.betas", "0.9", "0.95", "true", "false", "--help=", "[" * 900, "[" * 90_000, "{a=" * 300,
    "1\n[x]", "1 # 2", "9" * 5000, "-" + "9" * 5000, "-1e400", "-inf", "nan",
)  # fmt: skip


TEXT = "In the beginning God created the heaven and the earth.\n" * 20
FILE = "settings.toml"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories, each with a complete file of settings and the text that it names."""
    found = []
    for number, options in enumerate(OPTIONS):
        directory = tmp_path_factory.mktemp("settings") / str(number)
        directory.mkdir()
        (directory / "text.txt").write_text(TEXT)
        words = [*options.split(), "--data.path", str(directory / "text.txt"), "--data.holdout", "0.1"]
        (directory / FILE).write_text(printed(words))
        found.append(directory)
    return found


def printed(words: list[str], what: str = "--print-config") -> str:
    """What is shown instead of a run."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert prepare([*words, what], 1).exit_code == 0
    return shown.getvalue()


def bent(text: str, rng: Rng) -> bytes:
    """Lines changed, moved, repeated, taken away."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 3))):
        here, there = (int(rng.integers(len(lines))) for _ in range(2))
        key, equals, value = lines[here].partition(" = ")
        other = lines[there].partition(" = ")
        lines[here] = pick(rng, [
            f"{key} = {pick(rng, VALUES)}", f"{key} = {pick(rng, VALUES)}", f"{key} = {other[2]}",
            f"{pick(rng, KEYS)}{equals}{value}", f"{lines[here]}\n{lines[there]}", lines[there], "",
            f"{lines[here]}\n{pick(rng, KEYS)} = {pick(rng, VALUES)}", pick(rng, KEYS),
        ])  # fmt: skip
    return "\n".join(lines).encode(errors="surrogateescape")


def command_line(rng: Rng) -> list[str]:
    """Options with values, in their right places or not."""
    words: list[str] = []
    fields = list(known_fields().values())
    for _ in range(int(rng.integers(1, 4))):
        field = pick(rng, fields)
        right = pick(rng, [str(value).lower() for value in (*field.choices, field.default, 2)])
        value = pick(rng, [right, right, right, right, pick(rng, VALUES), pick(rng, TEXTS), pick(rng, WORDS)])
        option = f"--{field.name}"
        words += pick(
            rng, [*3 * [[option, value]], *2 * [[f"{option}={value}"]], [option], [pick(rng, WORDS)]]
        )
    return [word.replace("\0", "") for word in words]  # no program can be given one


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def one_case(number: int, bases: list[Path], sandbox: Sandbox) -> bool:
    rng = np.random.default_rng([3, number])
    base = pick(rng, bases)
    sandbox.renew(base)
    file, text, words = sandbox.case / FILE, (base / FILE).read_text(), []
    if rng.random() < 0.7:
        others = [(other / FILE).read_bytes() for other in bases]
        file.write_bytes(damaged(text.encode(), rng, others) if rng.random() < 0.3 else bent(text, rng))
        words = ["--config", str(file)]
    if not words or rng.random() < 0.2:
        words += command_line(rng)
    here = Path.cwd()  # where relative paths lead
    shown = sandbox.read(lambda: printed(words), CODES, here)
    tried = sandbox.read(lambda: printed(words, "--dry-run"), CODES, here) if number % 4 == 0 else None
    if shown is None:
        assert tried is None, "legal only if nobody asks"
        return False
    known = flat(tomllib.loads(shown))
    if "--config" in words:
        for name, value in flat(tomllib.loads(file.read_text())).items():
            if not any(re.match(f"--{re.escape(name)}(=|$)", word) for word in words):
                value = value if isinstance(value, str | int | float | list) else str(value)  # a date as text
                assert known[name] == value, f"{name} is {known[name]!r}, not {value!r}"
    (sandbox.case / "again.toml").write_text(shown)
    assert printed(["--config", str(sandbox.case / "again.toml")]) == shown
    return True


@campaign(in_suite=100, in_all=1_200)
def test_settings(numbers: range, bases: list[Path], sandbox: Sandbox) -> None:
    for base in bases:
        sandbox.renew(base)
        for what in ("--print-config", "--dry-run"):
            assert sandbox.read(partial(printed, ["--config", str(base / FILE)], what), (), base)
    run_cases(numbers, lambda number: one_case(number, bases, sandbox))
