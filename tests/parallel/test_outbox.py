"""Sends that are started: at most one pending for each neighbour."""

import numpy as np

from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.parallel.outbox import Outbox

LIMIT = 60.0


class Note:
    """Stands for a communicator, and writes down what it is asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def start_send(self, buffer: np.ndarray, to: int) -> "Note.Handle":
        self.log.append(f"send {buffer[0]} to {to}")
        return Note.Handle(self, f"wait for {buffer[0]}")

    class Handle:
        def __init__(self, note: "Note", text: str) -> None:
            self.note, self.text = note, text

        def wait(self) -> None:
            self.note.log.append(self.text)


def test_waits_for_the_previous_message_to_the_same_neighbour() -> None:
    note = Note()
    outbox = Outbox(note)  # type: ignore[arg-type]
    for number, to in ((1, 0), (2, 2), (3, 0)):
        outbox.send(np.array([number]), to)
    assert note.log == ["send 1 to 0", "send 2 to 2", "wait for 1", "send 3 to 0"]
    outbox.flush()
    assert sorted(note.log[4:]) == ["wait for 2", "wait for 3"]
    outbox.flush()
    assert len(note.log) == 6


def test_two_neighbours_may_send_to_each_other_first() -> None:
    def rank_main(pp: ThreadComm) -> float:
        outbox, got = Outbox(pp), np.empty(1)
        for number in range(5):
            outbox.send(np.array([10.0 * pp.rank + number]), 1 - pp.rank)
            pp.recv(got, 1 - pp.rank)
        outbox.flush()
        return float(got[0])

    assert run_threads(2, rank_main, LIMIT) == [14.0, 4.0]
