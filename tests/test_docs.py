"""The documentation is true: what it shows runs, what it quotes and names is there, its links lead somewhere.

What becomes of a block is said by the first line of its fence:

    ```python            run; the blocks of a page share one namespace and one temporary directory, in order
    ```python source=F   a quotation of the file F; a line `...` stands for lines left out
    ```console           lines that begin with `$ ` are run by bash in the same directory; the rest is output
    ```console root      the same in the root of the project
    ```console exact     as console, and the output is compared; `...` stands for anything
    ```text exact        what the python block before it prints, compared likewise
    ```text, ```sh       nothing: pictures, and commands that take minutes
    ```{toctree}         nothing: the site's (tests/test_site.py)
"""

import contextlib
import doctest
import io
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from launch import REPOSITORY, run

from minitrain.config import Config
from minitrain.observe.banner import banner
from minitrain.resolve import resolve

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SEVERAL = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


class Block(NamedTuple):
    kind: str  # the fence's first line: "python", "text exact" ...
    text: str
    line: int  # of the page, where the text begins


def blocks(page: Path) -> list[Block]:
    found, kind, start = [], None, 0
    lines = page.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if kind is None:
                kind, start = line[3:].strip(), number + 1
            else:
                found.append(Block(kind, "".join(lines[start - 1 : number - 1]), start))
                kind = None
    assert kind is None, f"{page}: the block of line {start} has no end"
    return found


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def assert_printed(expected: str, printed: str, where: str) -> None:
    same = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
    assert same, f"{where} shows\n{expected}\nbut printed was\n{printed}"


@SEVERAL
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    printed = ""
    for kind, text, line in blocks(page):
        where = f"{page.name}:{line}"
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (line - 1) + text, page, "exec"), namespace)
            printed = out.getvalue()
        elif kind == "text exact":
            assert_printed(text, printed, where)
        elif kind in ("console", "console root", "console exact"):
            commands = [part[2:] for part in text.splitlines() if part.startswith("$ ")]
            printed = run_commands(commands, REPOSITORY if kind == "console root" else tmp_path)
            if kind == "console exact":
                shown = [part for part in text.splitlines(keepends=True) if not part.startswith("$ ")]
                assert_printed("".join(shown), printed, where)
        else:
            assert kind in ("text", "sh", "{toctree}") or kind.startswith("python source="), (
                f"{where}: what is `{kind}`?"
            )


def run_commands(commands: list[str], directory: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(["bash", "-ec", "\n".join(commands)], cwd=directory, env={"PATH": path})
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return done.stdout


@SEVERAL
def test_what_a_page_quotes_stands_in_the_source(page: Path) -> None:
    for kind, text, line in blocks(page):
        if kind.startswith("python source="):
            source = (REPOSITORY / kind.partition("=")[2]).read_text().splitlines()
            at = 0
            for part in re.split(r"^ *\.\.\.\n", text, flags=re.MULTILINE):
                quoted = part.splitlines()
                places = [i for i in range(at, len(source)) if source[i : i + len(quoted)] == quoted]
                assert places, f"{page.name}:{line}: not in {kind.partition('=')[2]}, in this order:\n{part}"
                at = places[0] + len(quoted)


@SEVERAL
def test_links_lead_to_something(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), f"{page.name} links to {target}"
            if heading:
                assert heading in headings(linked), f"{page.name} links to {target}"


def headings(page: Path) -> list[str]:
    """The anchors that a code host makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@SEVERAL
def test_what_a_page_names_exists(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    words = source_words()
    for span in spans:
        if re.fullmatch(r"[\w./-]+\.(py|toml|md)|(minitrain|tests|docs|scripts)/[\w./-]*", span):
            assert any((root / span).exists() for root in ROOTS), f"{page.name} names the file {span}"
        elif test := re.fullmatch(r"(tests/[\w./-]+\.py)::(\w+)", span):
            file = REPOSITORY / test[1]
            assert file.exists() and f"def {test[2]}(" in file.read_text(), f"{page.name} names {span}"
        elif re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", span) and re.search(r"_|\(\)|\.", span):
            for name in re.findall(r"\w+", span):
                assert name in words, f"{page.name} names {span}"


ROOTS = [REPOSITORY, REPOSITORY / "minitrain", REPOSITORY / "docs"]


def source_words() -> set[str]:
    folders = (REPOSITORY / name for name in ("minitrain", "tests"))
    files = [file for folder in folders for file in folder.rglob("*.py") if file != Path(__file__)]
    return set(
        re.findall(r"\w+", "\n".join(file.read_text() for file in [*files, REPOSITORY / "pyproject.toml"]))
    )


def test_the_demo_in_the_readme_is_the_present_one() -> None:
    shown = (REPOSITORY / "README.md").read_text().splitlines()
    for line in banner(resolve(Config(), {}, world_size=8).config, []).splitlines():
        name = line.split()[0] if line.strip() else ""
        assert name == "run" or line in shown, f"run scripts/demo and renew its output in README.md: {line}"


@pytest.mark.parametrize(
    ("page", "test", "message"),
    [
        ("```python\nassert 1 == 2, 'wrong'\n```", test_what_a_page_shows_runs, "wrong"),
        ("```python\nprint(1)\n```\n```text exact\n2\n```", test_what_a_page_shows_runs, "but printed was"),
        ("```console\n$ false\n```", test_what_a_page_shows_runs, "false"),
        ("```console exact\n$ echo a\nb\n```", test_what_a_page_shows_runs, "but printed was"),
        ("```ruby\n```", test_what_a_page_shows_runs, "what is `ruby`"),
        (
            "```python source=minitrain/step.py\nnothing\n```",
            test_what_a_page_quotes_stands_in_the_source,
            "not in",
        ),
        ("[there](nowhere.md)", test_links_lead_to_something, "nowhere.md"),
        ("[there](#nowhere)", test_links_lead_to_something, "#nowhere"),
        ("`step.no_such_function`", test_what_a_page_names_exists, "no_such_function"),
        ("`ops/no_such_file.py`", test_what_a_page_names_exists, "no_such_file"),
    ],
)
def test_a_false_page_is_caught(page, test, message, tmp_path, monkeypatch) -> None:
    (tmp_path / "page.md").write_text(page + "\n")
    arguments = (tmp_path, monkeypatch) if test is test_what_a_page_shows_runs else ()
    with pytest.raises(AssertionError, match=re.escape(message)):
        test(tmp_path / "page.md", *arguments)
