"""When the plugin leaves: at Shutdown, SIGTERM, SIGHUP, or when the host dies. Ctrl-C is left to the host.

Mirrors what go-plugin's server.go and grpc_controller.go do, and adds the host's death, which the companion notices.
"""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable

from goplugin import log
from goplugin.companion import Companion

GRACE = 1.5  # seconds that calls in flight may take to finish; the host kills after 2
LAST_RESORT = 0.3  # seconds after that for the rest of main(), and for threads and exit handlers that Python waits for

_IDLE = 5.0  # seconds

_log = log.get_logger("goplugin")


class Lifetime:
    """Waits in a thread of its own: leaving needs neither main() nor a new thread, which the system may not have."""

    def __init__(
        self,
        leave: Callable[[str], None],
        companion: Companion | None,
        companion_died: Callable[[], str],
        idle: Callable[[], None],
    ) -> None:
        """Start the thread. To be called in the main thread.

        leave(reason): called once, in that thread; the process ends soon after it returns.
        companion_died(): called when it has; returns the reason to leave.
        idle(): called every 5 s.
        """
        self._leave, self._companion, self._companion_died, self._idle = leave, companion, companion_died, idle
        self._reason = ""
        self._left = threading.Event()
        self._signals: dict[int, str] = {}
        # A signal handler can write to it, and it wakes our thread whichever thread received the signal.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # Not epoll: that does not tell if somebody has closed a descriptor.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._read, selectors.EVENT_READ)
        if companion:
            self._selector.register(companion.events, selectors.EVENT_READ)
        others = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
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
        with contextlib.suppress(OSError):  # it has been told so often that there is no room
            self._write.send(b"\0")

    def is_over(self) -> bool:
        """Whether there is a reason to leave."""
        return bool(self._reason)

    def wait(self, timeout: float | None = None) -> None:
        """Block until `leave` has returned."""
        self._left.wait(timeout)

    def _run(self) -> None:
        """Wait for a reason, and leave. Nothing may keep the process from ending then."""
        try:
            try:
                while not self._reason:
                    self._wait()
            except Exception:
                self._reason = "the plugin cannot wait for Shutdown and signals any more"
                _log.exception("%s: did a handler close descriptors that it does not own?", self._reason)
            if self._companion:
                self._companion.resume()
            self._leave(self._reason)
        except Exception:
            _log.exception("the plugin could not leave in order")
        finally:
            self._left.set()
            time.sleep(LAST_RESORT)
            if self._companion:
                self._companion.end()
            os._exit(0)

    def _wait(self) -> None:
        ready = self._selector.select(_IDLE)
        if not ready:
            self._idle()
        for key, _ in ready:
            if key.fileobj is self._read:
                numbers = self._read.recv(4096)
                if not numbers:
                    raise EOFError("its socket is another one by now")
                reason = next((self._signals[number] for number in numbers if number in self._signals), "")
            elif self._companion:
                try:
                    reason = self._companion.read_event()
                except (EOFError, OSError):
                    reason = self._companion_died()
            self._reason = self._reason or reason

    def _before_fork(self) -> None:
        """Block our signals: until it is past _after_fork, a child would write its own ones to our pipe."""
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _after_fork(self) -> None:
        """In a child by fork without exec: its signals are its own, and our pipe is not."""
        if self._signals:  # not in a child's child
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in self._signals:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
        self._signals = {}
        self._unblock()
