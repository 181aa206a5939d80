"""Whether the host is still there. A plugin that stays behind holds pipes that somebody may still wait on."""

import contextlib
import os
import stat
from collections.abc import Callable

from goplugin.companion.loop import ERROR_ONLY, READ, Loop

_PARENT_CHECK = 0.5  # seconds between looks at the parent where the system cannot tell of its end


def watch(loop: Loop, parent: int, stderr: int, gone: Callable[[str], None]) -> None:
    """Call gone(reason) when the process that started the plugin has ended, or when nobody reads its stderr.

    Both are needed: a shell between host and plugin may outlive the host; another process may hold the pipe.
    parent: the process that started the plugin. stderr: a descriptor of the host's, for this alone.
    """

    def watch(fd: int, events: int, reason: str) -> None:
        def on_event(_: int) -> None:
            loop.forget(fd)
            gone(reason)

        loop.watch(fd, events, on_event)

    def look_at_parent() -> None:
        if _has_ended(parent):
            gone("the process that started this plugin is gone")
        else:
            loop.call_later(_PARENT_CHECK, look_at_parent)

    mode = os.fstat(stderr).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # files, terminals and devices have no reader to lose
        watch(stderr, ERROR_ONLY, "the host is gone")
    try:
        watch(os.pidfd_open(parent), READ, "the process that started this plugin is gone")
    except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox; or it has ended already
        if parent > 0:  # 0: it is outside of this container
            look_at_parent()


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

    Then process 1 is our parent. If process 1 itself started us, as a host in a container may, we are in its session
    or in our own.
    """
    try:
        return os.getppid() == 1 and os.getsid(0) not in (os.getsid(1), os.getpid())
    except (AttributeError, OSError):  # Windows; a system that keeps sessions of others secret
        return False
