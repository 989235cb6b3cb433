"""Does the guard notice? What no case does is done here."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz import guard
from fuzz.campaign import run_cases
from fuzz.sandbox import Sandbox, require_readable

from minitrain.errors import CheckpointError, ConfigError, Problem


@pytest.fixture
def filled(sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    original = tmp_path / "original"
    original.mkdir()
    (original / "data").write_bytes(b"1234")
    sandbox.renew(original)
    return sandbox


MISDEEDS: dict[str, tuple[Callable[[Sandbox], object], str]] = {
    "writes": (lambda s: (s.case / "data").write_bytes(b"12"), "was opened to be written"),
    "reads what is another's": (lambda s: (s.elsewhere / "canary.txt").read_text(), "canary.txt was opened"),
    "removes": (lambda s: (s.elsewhere / "canary.txt").unlink(), "reading has changed something"),
    "makes a directory": (lambda s: (s.case / "new").mkdir(), "reading has changed something"),
    "replaces": (lambda s: os.replace(s.case / "data", s.case / "other"), "reading has changed something"),
}


@pytest.mark.parametrize("name", MISDEEDS)
def test_what_a_reader_must_not_do(name: str, filled: Sandbox) -> None:
    action, complaint = MISDEEDS[name]
    with pytest.raises(AssertionError, match=complaint):
        filled.read(lambda: action(filled), ())


def test_what_a_reader_may_do(filled: Sandbox) -> None:
    assert filled.read((filled.case / "data").read_bytes, ()) == b"1234"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")
def test_memory(filled: Sandbox) -> None:
    with pytest.raises(AssertionError, match="memory grew by"):
        filled.read(lambda: bytes(np.ones(guard.GROWTH + (4 << 20), np.uint8)), ())
    assert filled.read(lambda: len(bytes(np.ones(20 << 20, np.uint8))), ())  # and it is a matter of this case
    with pytest.raises(MemoryError):
        filled.read(lambda: np.ones(1 << 40, np.uint8), ())


def test_a_wait_without_end(filled: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.1)
    os.mkfifo(filled.case / "pipe")
    with pytest.raises(guard.TookTooLong):
        filled.read((filled.case / "pipe").read_bytes, ())
    filled.read(lambda: time.sleep(0), ())


def raising(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_errors(filled: Sandbox) -> None:
    error = CheckpointError("a", "b", "c")
    assert filled.read(raising(error), {4}) is None
    with pytest.raises(AssertionError, match="exit code 4"):
        filled.read(raising(error), {2, 3})
    with pytest.raises(ValueError):
        filled.read(raising(ValueError()), {4})
    require_readable(ConfigError([Problem("a\x1b[2J\nb", "c", 5000 * "d"), Problem("e", "f", "g")]))


def test_every_failure_is_counted_and_can_be_repeated() -> None:
    def fails(number: int) -> bool:
        assert number < 5, "too large"
        return number == 0

    assert run_cases(range(5), fails) is None
    again = r"2 of 7 cases\n\nFUZZ_CASE=5 python -m pytest -q tests/fuzz/test_guard.py::"
    with pytest.raises(AssertionError, match=again):
        run_cases(range(7), fails)
    with pytest.raises(AssertionError, match="60 of 60 were accepted"):
        run_cases(range(60), lambda number: True)
