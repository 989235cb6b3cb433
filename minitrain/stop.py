"""Signals that ask a job to stop: it saves a checkpoint and ends, to be started again.

SIGTERM comes from schedulers (pre-emption) and SIGUSR1 from batch scripts shortly before the time limit. One
rank that gets it is enough; the ranks agree between two steps. A second one ends the process at once.
"""

import os
import signal
import socket
import threading

from minitrain.errors import TryAgainError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether somebody has asked, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        """From now on signals set this. To be called by the main thread of a process.

        Python runs its handlers between two instructions of the main thread, which may be inside a collective
        that never ends. So the signals go to a thread through a socket (`signal.set_wakeup_fd`).
        """
        ours, signals_own = socket.socketpair()
        signals_own.setblocking(False)
        signal.set_wakeup_fd(signals_own.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(ours, signals_own), name="signals", daemon=True).start()

    def _watch(self, ours: socket.socket, signals_own: socket.socket) -> None:
        """`signals_own` is kept open for as long as this runs."""
        while numbers := ours.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    if self.signal is not None:
                        os._exit(TryAgainError.exit_code)
                    self.signal = signal.Signals(number)
