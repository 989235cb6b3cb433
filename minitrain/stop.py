"""Signals that ask a job to stop: it saves a checkpoint and ends, to be started again.

SIGTERM comes from schedulers (pre-emption) and SIGUSR1 from batch scripts shortly before the time limit. One
rank that gets it is enough; the ranks agree between two steps. The same signal once more ends the process at
once. The other one does not, as schedulers send both; nor does one that follows within a second, as `timeout`
signals a process and then its group.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minitrain.errors import TryAgainError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ONE_REQUEST = 1.0  # seconds in which a signal may come several times and means the same


class StopRequest:
    """Whether somebody has asked, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile signals set this. Only in the main thread of a process.

        Python runs its handlers between two instructions of the main thread, which may be inside a collective
        that never ends. So the signals go to a thread, through a socket (`signal.set_wakeup_fd`).
        """
        ours, of_signals = socket.socketpair()
        of_signals.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        signal.set_wakeup_fd(of_signals.fileno(), warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(ours,), name="signals", daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            of_signals.close()
            watch.join()
            ours.close()

    def _watch(self, ours: socket.socket) -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    if self.signal is None:
                        self.signal, self._since = signal.Signals(number), time.monotonic()
                    elif self.signal == number and time.monotonic() - self._since > ONE_REQUEST:
                        os.write(2, b"minitrain: told to stop a second time, and ends at once\n")
                        os._exit(TryAgainError.exit_code)
