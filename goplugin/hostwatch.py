"""Whether the host is still there. A plugin that stays behind holds pipes that somebody may still wait on."""

import os
import select
from collections.abc import Iterator

_PARENT_CHECK = 0.5  # seconds between looks at the parent where the system cannot tell of its end


class HostWatch:
    """The host is gone when the process that started us is, or when nobody reads either of our pipes any more.

    Both count: a shell between host and plugin may outlive the host, and a pipe may be held by somebody else.
    """

    def __init__(self, parent: int, pipes: tuple[int, ...]) -> None:
        """parent: the process that started the plugin; pipes: our ends of its stdout and stderr."""
        self._parent, self._is_ours = parent, os.getppid() == parent
        self._pipes = set(pipes)
        self._pidfd = open_process(parent)

    def fds(self) -> Iterator[tuple[int, int]]:
        """Return what to watch: file descriptors, each with the events of select.poll()."""
        for fd in self._pipes:
            yield fd, 0  # errors alone: POLLERR or POLLHUP once nobody can read it
        if self._pidfd >= 0:
            yield self._pidfd, select.POLLIN

    def timeout(self) -> float | None:
        """Return after how many seconds to ask again, though nothing happened; None if that is not needed."""
        return None if self._pidfd >= 0 else _PARENT_CHECK

    def gone(self, fd: int = -1) -> str:
        """Return why the host is gone, or "" if it is there. fd: one of ours that was reported ready."""
        self._pipes.discard(fd)
        if not self._pipes:
            return "the host is gone"
        if fd == self._pidfd >= 0 or (self._pidfd < 0 and self._parent_has_left()):
            return "the process that started this plugin is gone"
        return ""

    def _parent_has_left(self) -> bool:
        if self._is_ours:
            return os.getppid() != self._parent
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is there, and another user's
            pass
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
