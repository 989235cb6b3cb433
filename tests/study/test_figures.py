"""Figures are the same bytes every time, and whatever hinders them is said in one line before any work."""

import sys
from pathlib import Path
from typing import Any

import pytest

from minitrain.cli import main
from minitrain.errors import ConfigError
from minitrain.launched import LAUNCHERS
from minitrain.study.figures import draw, make_directory


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for size, rank, _ in LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    return tmp_path


def paint(figure: Any) -> None:
    figure.subplots().plot([0, 1, 2], [0.123456789, 1, 0], label="line")


def test_the_same_bytes_every_time(place: Path) -> None:
    first = [path.read_bytes() for path in draw(make_directory("a/b") / "x", (3, 2), paint)]
    assert [path.read_bytes() for path in draw(make_directory("c") / "x", (3, 2), paint)] == first
    assert sorted(path.name for path in (place / "c").iterdir()) == ["x.png", "x.svg"]
    svg = first[1].decode()
    assert "<dc:date>" not in svg and "0.123" not in svg


@pytest.mark.parametrize("topic", ["optimizers", "precision"])
def test_without_matplotlib_it_is_said_at_once(
    topic: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["study", topic]) == 2
    out, err = capsys.readouterr()
    assert out == "" and list(place.iterdir()) == []
    what = "figures need matplotlib, which is not installed; this Python; pip install 'minitrain[figures]'"
    assert err == f"minitrain: error: {what}\n"
    assert main(["study", "formats"]) == 0


def test_a_directory_that_cannot_be_made_is_said_at_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").write_text("")
    assert main(["study", "precision", "--out", "file/below"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minitrain: error: cannot write file/below: Not a directory; --out;")


def test_a_file_that_cannot_be_written_is_said(place: Path) -> None:
    (place / "x.png").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write x\.png: Is a directory; --out; "):
        draw(Path("x"), (3, 2), paint)
