"""Where the cases happen."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """The current directory is an empty one in it, where relative paths lead."""
    before = Path.cwd()
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    yield Sandbox(tmp_path)
    os.chdir(before)
