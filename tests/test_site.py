"""Sphinx makes a site of the docs, and finds what leads nowhere."""

import shutil
import sys
from pathlib import Path

import pytest
from launch import REPOSITORY, run

pytest.importorskip("sphinx")

DOCS = REPOSITORY / "docs"
STRICT = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet")  # as in scripts/site


def build(docs: Path, out: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "sphinx", *STRICT, "--builder", "html", str(docs), str(out)]
    done = run(command, cwd=out.parent, timeout=120)
    return done.returncode, done.stderr


def test_the_site_is_made(tmp_path: Path) -> None:
    assert all(option in (REPOSITORY / "scripts/site").read_text() for option in STRICT)
    assert build(DOCS, tmp_path / "site") == (0, "")
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")).is_file()


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    with open(docs / "shapes.md", "a") as page:
        page.write("\n[a](no.md) [b](pipeline.md#no) [c](#no) [d](../minitrain/no.py) ![e](figures/no.png)\n")
    (docs / "orphan.md").write_text("# Not in the table of contents\n")
    code, said = build(docs, tmp_path / "site")
    assert code == 1
    warnings = [line for line in said.splitlines() if "WARNING" in line]
    assert len(warnings) == 6, said
    assert [sum(name in line for line in warnings) for name in ("shapes.md", "orphan.md")] == [5, 1]
