"""Pieces of HTML. Whatever comes out of a file passes through `escape` on its way here."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["code", "definitions", "escape", "figure", "for_script", "note", "paragraph", "section", "table"]


def section(name: str, title: str, *parts: str) -> str:
    return "\n".join([f'<section id="{name}">', f"<h2>{title}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """Of HTML."""
    return f"<p>{text}</p>"


def note(text: str) -> str:
    """Of HTML, in small letters."""
    return f'<p class="note">{text}</p>'


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def definitions(entries: dict[str, str]) -> str:
    """Terms and what they are, as text."""
    rows = (f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries.items())
    return f"<dl>{''.join(rows)}</dl>"


def figure(name: str, svg: str, caption: str) -> str:
    """`svg` and `caption` are HTML."""
    return f'<figure id="figure-{name}">{svg}<figcaption>{caption}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Of text. The first `words` columns are words, the others numbers. A cell `differs` stands out."""

    def cell(tag: str, column: int, text: str) -> str:
        classes = [*(["words"] if column < words else []), *(["differs"] if text == DIFFERS else [])]
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{escape(text)}</{tag}>"

    def row(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, column, text) for column, text in enumerate(cells))}</tr>"

    body = "\n".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table>\n{row("th", head)}\n{body}\n</table></div>'


DIFFERS = "differs"


def for_script(name: str, value: Any) -> str:
    """`value` as JSON that a script finds by `name`; nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", r"\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
