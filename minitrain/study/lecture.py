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
    """Runs it, on `ranks` threads where `world` is one process alone, and shows its screens.

    It runs to its end first: ranks that wait for a reader would be busy waiting.
    """

    def on_rank(comm: Comm) -> list[str]:
        page = Page(comm)
        lecture(page, comm)
        return page.screens

    screens = on_rank(world) if world.size > 1 else run_threads(ranks, on_rank, LIMIT)[0]
    if world.rank == 0:
        present(screens, pause=not all_at_once and sys.stdin.isatty() and sys.stdout.isatty())


def present(screens: list[str], pause: bool) -> None:
    """One after another; with `pause` the reader says when."""
    for number, screen in enumerate(screens, 1):
        show(screen + "\n")
        if pause and number < len(screens):
            try:
                input(f"({number} of {len(screens)}; Enter goes on) ")
            except EOFError:
                pause = False
