"""When the plugin leaves: Shutdown, SIGTERM, or the host's death. Ctrl-C is no reason: that is the host's to decide.

Mirrors what go-plugin's server.go and grpc_controller.go do, and adds the host's death: a plugin that stays behind
holds the pipes that its host, or whoever started that, still waits on.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Collection

from goplugin import outputs
from goplugin.terminator import Terminator

GRACE = 1.5  # seconds that calls in flight may take to finish; the host kills after 2
LAST_RESORT = 0.3  # seconds that leaving may take after that, whatever threads or exit handlers still run

TERMINATOR_DIED = "the TLS terminator died"

_PARENT_CHECK = 0.5  # seconds between looks at the parent where the system cannot tell of its end
_PARENT = os.getppid()  # asked at import, long before the parent has a reason to leave


class Lifetime:
    """Waits, in the main thread and without waking up, for the first reason to leave; SIGTERM is one from the start."""

    def __init__(self) -> None:
        self._reason = ""
        # A pipe, since nothing else may be touched from a signal handler and wakes a poll() too. Signals write to it as
        # they arrive: one that another thread gets, or that comes just before the poll(), would not end that.
        self._stop_read, self._stop_write = os.pipe()
        if hasattr(select, "poll"):
            os.set_blocking(self._stop_read, False)
            os.set_blocking(self._stop_write, False)
            signal.set_wakeup_fd(self._stop_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda signum, frame: self.stop("SIGTERM"))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_hear_signals)

    def stop(self, reason: str) -> None:
        """End `wait`, now or when it begins; from any thread, and from signal handlers."""
        self._reason = self._reason or reason
        with contextlib.suppress(BlockingIOError):  # it has been told so often that the pipe is full
            os.write(self._stop_write, b".")

    def wait(self, host_pipes: Collection[int], leave_with_host: bool, terminator: Terminator | None) -> str:
        """Block until there is a reason to leave, and return it.

        host_pipes: our ends of the pipes that the host reads; the host is gone when their readers are, even
        where a shell between us and the host lives on.
        leave_with_host: whether that, and the end of our parent, is a reason.
        terminator: whose end is a reason, for nobody could call us without it.
        """
        if not hasattr(select, "poll"):  # Windows: pipes and processes cannot be polled there
            os.read(self._stop_read, 1)
            return self._reason
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        for fd in host_pipes:
            poll.register(fd, 0)  # errors only: POLLERR or POLLHUP once nobody can read it any more
        if terminator:
            poll.register(terminator, 0)
        parent = _open_process(_PARENT) if leave_with_host else None
        if parent is not None:
            poll.register(parent, select.POLLIN)
        timeout = _PARENT_CHECK * 1000 if leave_with_host and parent is None else None
        try:
            while True:
                if leave_with_host and os.getppid() != _PARENT:
                    return "the process that started this plugin is gone"
                ready = {fd for fd, _ in poll.poll(timeout)}
                if self._stop_read in ready:
                    os.read(self._stop_read, 4096)
                    if self._reason:  # else it was a signal that is no reason
                        return self._reason
                if terminator and terminator.fileno() in ready:
                    return TERMINATOR_DIED
                if gone := ready.intersection(host_pipes):
                    if leave_with_host:
                        return "the host is gone"
                    outputs.silence()
                    for fd in gone:
                        poll.unregister(fd)
        finally:
            if parent is not None:
                os.close(parent)


def _hear_signals() -> None:
    """In a child by fork without exec: signals to it are not ours, nor is the pipe that our handler writes to."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_within(seconds: float) -> None:
    """End the process with exit code 0 if it has not ended by itself by then.

    Returning from main() is the ordinary end; this is for threads that main()'s end would wait for.
    """

    def leave() -> None:
        os._exit(0)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def _open_process(pid: int) -> int | None:
    """A file descriptor that becomes readable when the process ends; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox; or gone already
        return None
