"""Figures as PNG and SVG files, all in one look. The one place that knows matplotlib, which the extra
`figures` installs: no rank that trains ever imports it.
"""

import errno
import io
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart by readers who are blind to some colours too.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#333333",
)  # fmt: skip
GREY = "#8C8C8C"
PALE = "#D9D9D9"

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters, not their outlines: a fraction of the size
    "svg.hashsalt": "minitrain",  # or else ids are drawn by chance
    "savefig.dpi": 150,
}


def check_figures() -> list[Problem]:
    """The problem, if figures cannot be drawn here. Imports nothing."""
    if find_spec("matplotlib") is not None:
        return []
    remedy = "pip install 'minitrain[figures]'"
    return [Problem("figures need matplotlib, which is not installed", "this Python", remedy)]


def make_directory(out: str) -> Path:
    """The directory for figures. Raises ConfigError, before anything long is computed for them."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(Path(out), error) from error
    return Path(out)


def write(path: Path, content: bytes) -> Path:
    """Makes or replaces the file."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    what = f"cannot write {path}: {error.strerror}"
    return ConfigError([Problem(what, "--out", "free space there, or choose another --out")])


def draw(path: Path, inches: tuple[float, float], paint: "Callable[[Figure], None]") -> list[Path]:
    """Writes `path`.png and `path`.svg, the same bytes every time, and returns their names."""
    import matplotlib
    from matplotlib.figure import Figure

    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure)
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r'"[^"<>]*"', lambda quoted: re.sub(r"\d+\.\d{3,}", _hundredths, quoted[0]), svg.getvalue())
    return [
        write(path.with_suffix(".png"), png.getvalue()),
        write(path.with_suffix(".svg"), text.encode()),  # in hundredths of a point: half the size
    ]


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
