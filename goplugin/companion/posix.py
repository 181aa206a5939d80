"""What the companion needs of Linux and macOS: fork, pipes that can be polled, and a look at the host."""

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import stat
import sys
import warnings
from collections.abc import Callable
from typing import Any

from goplugin import standard_streams
from goplugin.companion.loop import ERROR_ONLY, READ, Loop
from goplugin.state import State

QUIET = 0.0  # seconds that what was written to a pipe may take to arrive

_PARENT_GONE = "the process that started this plugin is gone"
_PARENT_CHECK = 0.5  # seconds between looks at the parent where the system cannot tell of its end


class Child:
    """Starts the companion by fork: no second start of Python, and it works however the plugin was packed.

    By two forks, so that it is not a child of ours: os.wait() in the plugin's own code must not meet it. But if process
    1 is the host or the plugin itself, as in a container, by one: the plugin must wait for it at the end, because the
    host would not, and because the container ends with process 1.
    """

    def __init__(self, state: State, mark: bytes, stderr: int) -> None:
        """Start it. OSError if the system refuses. See Process for what is passed."""
        self._control, control = socket.socketpair()
        self._events, events = socket.socketpair()
        self._is_ours = 1 in (os.getpid(), os.getppid())
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, as a debugger or tracer may have started. None of them is in our
            # way: the process uses nothing that they have.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            try:
                if self._is_ours or os.fork() == 0:
                    _serve(state, mark, control, events, stderr)
            finally:
                os._exit(0)  # if the second fork failed, the plugin takes that for a companion that has died
        control.close()
        events.close()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Let go of the intermediate child, and return control and events. Not at once: this costs a millisecond."""
        if not self._is_ours and self._pid:
            with contextlib.suppress(ChildProcessError):  # the plugin's code has waited for all children
                os.waitpid(self._pid, 0)
            self._pid = 0
        return self._control, self._events

    def has_died(self) -> bool:
        """Whether it has ended already."""
        poll = select.poll()
        poll.register(self._control, ERROR_ONLY)
        return bool(poll.poll(0))

    def end(self, seconds: float) -> None:
        """If it is a child of ours, wait until it has passed on the last words."""
        if self._is_ours:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
                self._events.settimeout(seconds)
                while self._events.recv(4096):
                    pass
                os.waitpid(self._pid, 0)
            self._is_ours = False

    def close(self) -> None:
        """Let go of it: it ends, or serves the parent of this process alone."""
        self._is_ours = False
        self._control.close()
        self._events.close()


def _serve(state: State, mark: bytes, control: socket.socket, events: socket.socket, stderr: int) -> None:
    """Be the companion. Runs none of the plugin's exit handlers."""
    # These go to the whole process group. The companion must stay until the plugin has finished its calls.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    null = standard_streams.null()
    for standard in (0, standard_streams.STDOUT):  # stdin is for the plugin's own code
        os.dup2(null, standard)
    # Not the host's stdout, which would not end with the plugin, nor what the host has given to the plugin besides.
    kept = (standard_streams.STDERR, control.fileno(), events.fileno(), stderr)
    for fd in standard_streams.open_descriptors():
        if fd > standard_streams.STDERR and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name_file:
        name_file.write("companion")  # for ps and top, on Linux
    sys.settrace(None)
    sys.setprofile(None)
    gc.freeze()  # else the first collection would copy all that we share with the plugin
    gc.enable()  # it was off while goplugin is imported

    from goplugin.companion import process

    process.run(state, mark, control, events, stderr)


class Pipe:
    """A pipe with the methods of a socket that does not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor's number."""
        return self._fd

    def recv(self, size: int) -> bytes:
        """Read what is there, at most so much."""
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        """Write as much as a pipe that is ready takes without making us wait. Return how much that was."""
        return os.write(self._fd, data[: select.PIPE_BUF])


def reads(fd: int) -> Pipe:
    """Return the pipe to read from."""
    os.set_blocking(fd, False)
    return Pipe(fd)


def writes(fd: int) -> Pipe:
    """Return the pipe to write to. It belongs to others too: it stays as it is."""
    return Pipe(fd)


def flush(pipe: Pipe, seconds: float) -> None:
    """Return when what was sent is in the pipe."""


def descriptor_limit() -> int:
    """Return how many descriptors this process can have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def watch_host(loop: Loop, parent: int, stderr: Any, gone: Callable[[str], None]) -> None:
    """Call gone(reason) when the process that started the plugin has ended, or when nobody reads its stderr.

    Both are needed: a shell between host and plugin may outlive the host; another process may hold the pipe.
    parent: the process that started the plugin. stderr: what `writes` returned.
    """

    def watch(fd: Any, events: int, reason: str) -> None:
        def on_event(_: int) -> None:
            loop.forget(fd)
            gone(reason)

        loop.watch(fd, events, on_event)

    def look_at_parent() -> None:
        if has_ended(parent):
            gone(_PARENT_GONE)
        else:
            loop.call_later(_PARENT_CHECK, look_at_parent)

    mode = os.fstat(stderr.fileno()).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # files, terminals and devices have no reader to lose
        watch(os.dup(stderr.fileno()), ERROR_ONLY, "the host is gone")
    try:
        watch(_end_of(parent), READ, _PARENT_GONE)
    except ProcessLookupError:
        gone(_PARENT_GONE)
    except (AttributeError, OSError):  # an old kernel, a sandbox, another system
        if parent > 0:  # 0: it is outside of this container
            look_at_parent()


def _end_of(pid: int) -> Any:
    """Return what is ready to be read once the process has ended, even if its own parent has not noticed yet.

    ProcessLookupError if it has ended, AttributeError or another OSError if the system cannot tell.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    bsd: Any = select  # macOS
    queue = bsd.kqueue()
    queue.control([bsd.kevent(pid, bsd.KQ_FILTER_PROC, fflags=bsd.KQ_NOTE_EXIT)], 0)
    return queue


def has_ended(pid: int) -> bool:
    """Whether there is no such process any more."""
    with contextlib.suppress(PermissionError):  # it is there, and another user's
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"Z"  # its own parent has not noticed yet
    return False


def is_orphan() -> bool:
    """Whether the process that started us ended before we could watch it, as far as the system tells.

    Then process 1 is our parent. If process 1 itself started us, as a host in a container may, we are in its session
    or in our own.
    """
    try:
        return os.getppid() == 1 and os.getsid(0) not in (os.getsid(1), os.getpid())
    except OSError:  # a system that keeps sessions of others secret
        return False
