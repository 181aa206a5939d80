"""Where output goes, from the first import on: the host's stdout is for the handshake line alone.

File descriptor 1 becomes the real stderr, which the host logs; so C libraries and child processes cannot break the
handshake, nor block later on a pipe that nobody reads. sys.stdout and sys.stderr go there too until the plugin serves,
and then to the host's SyncStdout and SyncStderr (see stdio.py).

It needs nothing but the standard library, because it must run before `import grpc`.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

STDOUT, STDERR = 1, 2  # file descriptors

Write = Callable[[int, bytes], None]

_host_stdout: TextIO | None = None


def take_stdout() -> TextIO:
    """The host's end of stdout, for the handshake line; from the first call on nothing else reaches it."""
    global _host_stdout
    if _host_stdout:
        return _host_stdout
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass  # the process was started with one of the three closed: whatever is opened next would take its place
    os.close(fd)
    # Not inheritable: a child that lives on would keep the host waiting for the end of this pipe.
    _host_stdout = os.fdopen(os.dup(STDOUT), "w", encoding="utf-8", newline="\n")
    if hasattr(os, "register_at_fork"):  # a child by fork without exec inherits all the same
        os.register_at_fork(after_in_child=_host_stdout.close)
    os.dup2(STDERR, STDOUT)
    sys.stdout, sys.stderr = _TextStream(STDOUT), _TextStream(STDERR)
    return _host_stdout


def redirect(write: Write | None) -> None:
    """Have sys.stdout and sys.stderr call write(STDOUT or STDERR, data); None: the real stderr, as at first."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _TextStream):
            stream.binary.redirected = write


def silence() -> None:
    """Let file descriptors 1 and 2 lead nowhere: who writes to a pipe that has no reader fails, or is killed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.dup2(null, STDERR)
    os.close(null)


class _BinaryStream(io.RawIOBase):
    """sys.stdout.buffer or sys.stderr.buffer; keeps nothing back."""

    def __init__(self, fd: int) -> None:
        self.redirected: Write | None = None
        self._fd = fd
        self._line_begins = True

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self.redirected:
            self.redirected(self._fd, data)
        elif data:
            # A line of JSON with a number for "@timestamp", say, would end the host: no line of ours is JSON there.
            os.write(STDERR, b"> " + data if self._line_begins and data.lstrip().startswith(b"{") else data)
            self._line_begins = data.endswith(b"\n")
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For child processes and faulthandler: the real stderr, by the number that this stream is known by."""
        return self._fd


class _TextStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr; what a handler prints is on its way when print returns."""

    def __init__(self, fd: int) -> None:
        self.binary = _BinaryStream(fd)
        raw: Any = self.binary
        # backslashreplace: print must not raise for what UTF-8 cannot express.
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
