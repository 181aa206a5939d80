"""The companion on Linux and macOS: it starts by fork, polls pipes, and watches the host."""

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

QUIET = 0.0  # seconds until bytes written to a pipe can be read

_PARENT_GONE = "the process that started this plugin is gone"
_PARENT_CHECK = 0.5  # seconds between checks of the parent, if the system cannot report its end


class Child:
    """Starts the companion by fork. Python does not start again, and it works however the plugin was packaged.

    It forks twice, so that the companion is not our child: os.wait() in the plugin's code must not find it. But in a
    container, where process 1 is the host or the plugin itself, it forks once. Then the plugin waits for the companion
    at the end: the host would not, and the container ends with process 1.
    """

    def __init__(self, state: State, mark: bytes, stderr: int) -> None:
        """Start the companion. OSError if the system refuses. Process describes the arguments."""
        self._control, control = socket.socketpair()
        self._events, events = socket.socketpair()
        self._is_ours = 1 in (os.getpid(), os.getppid())
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, such as a debugger's. They do no harm: the companion does not use
            # what they may have locked.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            try:
                if self._is_ours or os.fork() == 0:
                    _serve(state, mark, control, events, stderr)
            finally:
                os._exit(0)  # if the second fork failed, the plugin notices that the companion died
        control.close()
        events.close()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Wait for the intermediate child, and return control and events. Call this late: it takes a millisecond."""
        if not self._is_ours and self._pid:
            with contextlib.suppress(ChildProcessError):  # the plugin's code has already waited for all children
                os.waitpid(self._pid, 0)
            self._pid = 0
        return self._control, self._events

    def has_died(self) -> bool:
        """Whether the companion has ended."""
        poll = select.poll()
        poll.register(self._control, ERROR_ONLY)
        return bool(poll.poll(0))

    def end(self, seconds: float) -> None:
        """If the companion is our child, wait until it has passed on the last words, at most so many seconds."""
        if self._is_ours:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
                self._events.settimeout(seconds)
                while self._events.recv(4096):
                    pass
                os.waitpid(self._pid, 0)
            self._is_ours = False

    def close(self) -> None:
        """Close our sockets. Then the companion ends, unless the parent of this process still has them."""
        self._is_ours = False
        self._control.close()
        self._events.close()


def _serve(state: State, mark: bytes, control: socket.socket, events: socket.socket, stderr: int) -> None:
    """Be the companion. The caller exits without the plugin's exit handlers."""
    # These signals reach the whole process group. The companion must stay until the plugin has finished its calls.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    null = standard_streams.null()
    for standard in (0, standard_streams.STDOUT):  # stdin is for the plugin's own code
        os.dup2(null, standard)
    # Close the host's stdout, which must end with the plugin, and other descriptors that the host gave to the plugin.
    kept = (standard_streams.STDERR, control.fileno(), events.fileno(), stderr)
    for fd in standard_streams.open_descriptors():
        if fd > standard_streams.STDERR and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name_file:
        name_file.write("companion")  # for ps and top, on Linux
    sys.settrace(None)
    sys.setprofile(None)
    gc.freeze()  # otherwise the first collection would copy all memory that we share with the plugin
    gc.enable()  # launch.py disables it during the import

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
        """Read at most size bytes. b"" at the end."""
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        """Write as much as a ready pipe takes without blocking. Return how many bytes."""
        return os.write(self._fd, data[: select.PIPE_BUF])


def reads(fd: int) -> Pipe:
    """Return the pipe to read from."""
    os.set_blocking(fd, False)
    return Pipe(fd)


def writes(fd: int) -> Pipe:
    """Return the pipe to write to. It stays blocking, because other processes share it."""
    return Pipe(fd)


def flush(pipe: Pipe, seconds: float) -> None:
    """Do nothing: what was sent is in the pipe."""


def descriptor_limit() -> int:
    """Return how many descriptors this process can open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def watch_host(loop: Loop, parent: int, stderr: Any, gone: Callable[[str], None]) -> None:
    """Call gone(reason) when the process that started the plugin has ended, and when nobody reads its stderr.

    Both checks are needed: a shell between host and plugin may outlive the host; another process may hold the pipe.
    parent: the pid of the process that started the plugin. stderr: from `writes`.
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
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # files, terminals and devices have no reader
        watch(os.dup(stderr.fileno()), ERROR_ONLY, "the host is gone")
    try:
        watch(_end_of(parent), READ, _PARENT_GONE)
    except ProcessLookupError:
        gone(_PARENT_GONE)
    except (AttributeError, OSError):  # an old kernel, a sandbox, another system
        if parent > 0:  # 0 if the parent is outside this container
            look_at_parent()


def _end_of(pid: int) -> Any:
    """Return a descriptor that becomes readable when the process ends, even if its parent has not waited for it.

    ProcessLookupError if it has ended already, AttributeError or another OSError if the system cannot do this.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    bsd: Any = select  # macOS
    queue = bsd.kqueue()
    queue.control([bsd.kevent(pid, bsd.KQ_FILTER_PROC, fflags=bsd.KQ_NOTE_EXIT)], 0)
    return queue


def has_ended(pid: int) -> bool:
    """Whether the process has ended."""
    with contextlib.suppress(PermissionError):  # it runs, as another user
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"Z"  # a zombie: its parent has not waited for it
    return False


def is_orphan() -> bool:
    """Whether the process that started us ended before we could watch it.

    Then our parent is process 1. But process 1 may have started us itself, as a host in a container. Then we are in its
    session or in our own.
    """
    try:
        return os.getppid() == 1 and os.getsid(0) not in (os.getsid(1), os.getpid())
    except OSError:  # some systems hide the sessions of others
        return False
