"""Whether the host is still there. A plugin that stays behind holds pipes that somebody may still wait on."""

import contextlib
import os
import stat
from collections.abc import Callable

from goplugin.companion.loop import ERROR_ONLY, READ, Loop

_PARENT_CHECK = 0.5  # seconds between looks at the parent where the system cannot tell of its end


class HostWatch:
    """The host is gone when the process that started the plugin is, or when nobody reads the plugin's stderr any more.

    Both count: a shell between host and plugin may outlive the host, and a pipe may be held by somebody else.
    """

    def __init__(self, loop: Loop, parent: int, stderr: int, gone: Callable[[str], None]) -> None:
        """parent: the process that started the plugin. stderr: the host's. gone(reason): called once."""
        self._loop, self._parent, self._gone = loop, parent, gone
        self._watched: list[int] = []
        mode = os.fstat(stderr).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # files, terminals and devices have no reader to lose
            self._watch(stderr, ERROR_ONLY, "the host is gone")
        pidfd = open_process(parent)
        if pidfd >= 0:
            self._watch(pidfd, READ, "the process that started this plugin is gone")
        elif parent > 0:  # 0: it is outside of this container
            loop.call_later(_PARENT_CHECK, self._look_at_parent)

    def _watch(self, fd: int, events: int, reason: str) -> None:
        self._watched.append(fd)
        self._loop.watch(fd, events, lambda _: self._say(reason))

    def _look_at_parent(self) -> None:
        if _has_ended(self._parent):
            self._say("the process that started this plugin is gone")
        else:
            self._loop.call_later(_PARENT_CHECK, self._look_at_parent)

    def _say(self, reason: str) -> None:
        for fd in self._watched:
            self._loop.forget(fd)
        self._gone(reason)


def _has_ended(pid: int) -> bool:
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

    Process 1 is our parent then. If that has started us itself, as a host in a container may, we are in its session,
    or in one of our own.
    """
    try:
        return os.getppid() == 1 and os.getsid(0) not in (os.getsid(1), os.getpid())
    except (AttributeError, OSError):  # Windows; a system that keeps sessions of others secret
        return False


def open_process(pid: int) -> int:
    """Return a file descriptor that is readable once the process has ended; -1 where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox; or it has ended already
        return -1
