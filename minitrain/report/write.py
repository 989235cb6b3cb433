"""A report in its directory: index.html and the figures."""

from pathlib import Path

from minitrain.report.page import page
from minitrain.report.run_files import read_run
from minitrain.study.figures import make_directory, write

PAGE = "index.html"


def write_report(run: Path, out: Path) -> Path:
    """Makes or renews it, and returns the path of the page. Raises DataError and ConfigError."""
    files = read_run(run)
    directory = make_directory(str(out))
    return write(directory / PAGE, page(files, directory).encode())
