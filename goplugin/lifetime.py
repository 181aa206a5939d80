"""When the plugin leaves: at Shutdown, SIGTERM, SIGHUP, or when the host dies. Ctrl-C is left to the host.

Mirrors what go-plugin's server.go and grpc_controller.go do, and adds the host's death.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable

from goplugin.companion import Companion
from goplugin.hostwatch import HostWatch

GRACE = 1.5  # seconds that calls in flight may take to finish; the host kills after 2
LAST_RESORT = 0.3  # seconds after that for the rest of main(), and for threads and exit handlers that Python waits for


class Lifetime:
    """Waits in a thread of its own: leaving needs neither main() nor a new thread, which the system may not have."""

    def __init__(
        self,
        leave: Callable[[str], None],
        host: HostWatch | None,
        companion: Companion | None,
        companion_died: Callable[[], str],
    ) -> None:
        """Start the thread. To be called in the main thread.

        leave(reason): called once, in that thread; the process ends soon after it returns.
        host: None if the plugin outlives its host.
        companion_died(): called when it has; returns the reason to leave, or "" to stay.
        """
        self._leave, self._host, self._companion, self._companion_died = leave, host, companion, companion_died
        self._reason = ""
        self._left = threading.Event()
        self._signals: dict[int, str] = {}
        # Self-pipe: a signal handler can write to it, and it wakes poll() whichever thread received the signal.
        self._read, self._write = os.pipe()
        if hasattr(select, "poll"):
            os.set_blocking(self._write, False)
            others = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            if others >= 0:  # an event loop's, which wakes up by it and then runs our handlers too
                signal.set_wakeup_fd(others)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and that stays
                self.stop_at(number, name)
        if hasattr(os, "register_at_fork"):
            self._mask = threading.local()  # of signals, as it was before the fork
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._unblock, after_in_child=self._after_fork
            )
        threading.Thread(target=self._run, name="goplugin-lifetime", daemon=True).start()

    def stop_at(self, number: int, reason: str) -> None:
        """Leave at this signal."""
        self._signals[number] = reason
        signal.signal(number, lambda signum, frame: self.stop(reason))

    def stop(self, reason: str) -> None:
        """Leave; from any thread, and from signal handlers."""
        self._reason = self._reason or reason
        with contextlib.suppress(BlockingIOError):  # it has been told so often that the pipe is full
            os.write(self._write, b"\0")

    def is_over(self) -> bool:
        """Whether there is a reason to leave."""
        return bool(self._reason)

    def wait(self, timeout: float | None = None) -> None:
        """Block until `leave` has returned."""
        self._left.wait(timeout)

    def _run(self) -> None:
        wait = self._wait if hasattr(select, "poll") else self._wait_for_stop
        while not self._reason:
            wait()
        self._leave(self._reason)
        self._left.set()
        time.sleep(LAST_RESORT)
        os._exit(0)

    def _wait_for_stop(self) -> None:
        os.read(self._read, 1)  # Windows: pipes and processes cannot be polled there

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        host_fds = dict(self._host.fds()) if self._host else {}
        for fd, events in host_fds.items():
            poll.register(fd, events)
        if self._companion:
            poll.register(self._companion, 0)
        timeout = self._host.timeout() if self._host else None
        ready = [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]
        for fd in ready or [-1]:
            if fd == self._read:
                numbers = os.read(self._read, 4096)
                reason = next((self._signals[number] for number in numbers if number in self._signals), "")
            elif self._companion and fd == self._companion.fileno():
                self._companion = None
                reason = self._companion_died()
            else:
                reason = self._host.gone(fd) if self._host else ""
            self._reason = self._reason or reason

    def _before_fork(self) -> None:
        """Block our signals: until it is past _after_fork, a child would write its own ones to our pipe."""
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _after_fork(self) -> None:
        """In a child by fork without exec: its signals are its own, and our pipe is not."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in self._signals:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
        self._unblock()
