"""Ends the plugin at Shutdown, SIGTERM, SIGHUP, or when the host is gone. The host handles Ctrl-C.

Mirrors go-plugin's server.go and grpc_controller.go. Plugins in Go do not notice when their host is gone.

The life of a plugin:

| state     | begins when                  | ends when                                  | deadline                   |
| --------- | ---------------------------- | ------------------------------------------ | -------------------------- |
| starting  | `import goplugin`            | plugin.listen() returns the handshake line | host's StartTimeout (60 s) |
| listening | the server has started       | main() prints the line                     | the same                   |
| serving   | the host reads the line      | there is a reason to leave                 | none                       |
| leaving   | the server refuses new calls | the calls in flight have ended             | GRACE                      |
| ended     | plugin.wait() returns        | the process ends: main() returns, or       | LAST_RESORT                |
|           |                              | this thread calls os._exit(0)              |                            |

From goplugin.Plugin(...) on, a reason to leave ends any state:

| reason                                                | who notices        | who kills a plugin that hangs      |
| ----------------------------------------------------- | ------------------ | ---------------------------------- |
| the host calls Shutdown                               | Controller         | the host, after 2 s                |
| SIGTERM, SIGHUP, unless main() handles or ignores it  | the signal handler | nobody                             |
| Ctrl-C, if a person started it with --debug           | the signal handler | nobody                             |
| the host is gone, unless leave_with_host=False        | the companion      | the companion, after PLUGIN_GRACE  |
| the one connection of a host that multiplexes is gone | the companion      | the companion, after PLUGIN_GRACE  |
| the companion died                                    | this thread        | nobody                             |
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

GRACE = 1.5  # seconds for calls in flight to finish; the host kills after 2
LAST_RESORT = 0.3  # seconds after that for the rest of main(), and for the threads and exit handlers of Python's exit

_IDLE = 5.0  # seconds between two calls of idle()

_log = log.get_logger("goplugin")


class Lifetime:
    """Waits for a reason to leave, in its own thread: main() may be stuck, and the system may have no thread left."""

    def __init__(
        self,
        leave: Callable[[str], None],
        companion: Companion | None,
        companion_died: Callable[[], str],
        idle: Callable[[], None],
    ) -> None:
        """Start the thread. Call this in the main thread.

        leave(reason): called once, in the new thread. The process ends LAST_RESORT after it returns.
        companion_died(): called when the companion has died; returns the reason to leave.
        idle(): called every 5 s while nothing happens.
        """
        self._leave, self._companion, self._companion_died, self._idle = leave, companion, companion_died, idle
        self._reason = ""
        self._left = threading.Event()
        self._signals: dict[int, str] = {}
        # Signal handlers write to this socket. It wakes our thread whichever thread received the signal.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # Not epoll: it does not notice when other code closes one of these descriptors.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._read, selectors.EVENT_READ)
        if companion:
            self._selector.register(companion.events, selectors.EVENT_READ)
        others = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        if others >= 0:  # an event loop's: it wakes up by its own and then runs our handlers too
            signal.set_wakeup_fd(others)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and that stays
                self.stop_at(number, name)
        if hasattr(os, "register_at_fork"):
            self._mask = threading.local()  # the signal mask before the fork
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._unblock, after_in_child=self._after_fork
            )
        threading.Thread(target=self._run, name="goplugin-lifetime", daemon=True).start()

    def stop_at(self, number: int, reason: str) -> None:
        """Leave when this signal arrives. number: the signal's."""
        self._signals[number] = reason
        signal.signal(number, lambda signum, frame: self.stop(reason))

    def stop(self, reason: str) -> None:
        """Leave. Any thread and any signal handler may call this."""
        self._reason = self._reason or reason
        with contextlib.suppress(OSError):  # the socket is full: the thread wakes up anyway
            self._write.send(b"\0")

    def is_over(self) -> bool:
        """Whether there is a reason to leave."""
        return bool(self._reason)

    def wait(self, timeout: float | None = None) -> None:
        """Block until `leave` has returned, at most timeout seconds."""
        self._left.wait(timeout)

    def _run(self) -> None:
        """Wait for a reason, and leave. The process ends then, whatever fails."""
        try:
            try:
                while not self._reason:
                    self._wait()
            except Exception:
                self._reason = "the plugin can no longer wait for Shutdown and signals"
                _log.exception("%s: did a handler close descriptors that it does not own?", self._reason)
            if self._companion:
                self._companion.resume()
            self._leave(self._reason)
        except Exception:
            _log.exception("an error interrupted the plugin's shutdown")
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
                    raise EOFError("other code has replaced the socket")
                reason = next((self._signals[number] for number in numbers if number in self._signals), "")
            elif self._companion:
                try:
                    reason = self._companion.read_event()
                except (EOFError, OSError):
                    reason = self._companion_died()
            self._reason = self._reason or reason

    def _before_fork(self) -> None:
        """Block our signals: until _after_fork has run, a child would write its own signals to our socket."""
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _after_fork(self) -> None:
        """In a child by fork without exec: give it Python's own signal handlers, and not our socket."""
        if self._signals:  # empty in a child's child
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in self._signals:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
        self._signals = {}
        self._unblock()
