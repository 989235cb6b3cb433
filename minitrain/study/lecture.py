"""A lecture from its beginning to its end: on the ranks of a launcher, or on threads."""

import sys
from collections.abc import Callable

from minitrain.comm.interface import Comm, World
from minitrain.comm.threads import run_threads
from minitrain.observe.console import show
from minitrain.study.page import Page

Lecture = Callable[[Page, Comm], None]

LIMIT = 60.0  # seconds after which a thread gives up that waits for others: one message too few, and all wait


def perform(lecture: Lecture, world: World, ranks: int, all_at_once: bool) -> None:
    """Runs it, on `ranks` threads where `world` is one process alone, and shows its screens. If something in
    it is not true, those before, and then raises.

    It runs to its end first: ranks that wait for a reader would be busy waiting.
    """
    written: list[Page] = []

    def on_rank(comm: Comm) -> None:
        page = Page(comm)
        if comm.rank == 0:
            written.append(page)
        lecture(page, comm)

    try:
        if world.size > 1:
            on_rank(world)
        else:
            run_threads(ranks, on_rank, LIMIT)
    finally:
        attended = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
        for page in written:
            present(page.screens, pause=attended and not all_at_once)


def present(screens: list[str], pause: bool) -> None:
    """One after another; with `pause` the reader says when."""
    for number, screen in enumerate(screens, 1):
        show(screen + "\n")
        if pause and number < len(screens):
            try:
                input(f"({number} of {len(screens)}; Enter goes on) ")
            except EOFError:
                pause = False
