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
_streams: list["_TextStream"] = []


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
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)
    os.dup2(STDERR, STDOUT)
    _streams[:] = sys.stdout, sys.stderr = _TextStream(STDOUT), _TextStream(STDERR)
    return _host_stdout


def host_stdout() -> TextIO:
    """Where the handshake line goes: what take_stdout() kept, or else stdout as it is."""
    return _host_stdout or sys.stdout


def redirect(write: Write | None) -> None:
    """Have sys.stdout and sys.stderr call write(STDOUT or STDERR, data); None: the real stderr, as at first."""
    for stream in _streams:
        stream.binary.redirected = write


def _leave_to_parent() -> None:
    """In a child by fork without exec: the host's pipe, and the stream to the host, are the parent's."""
    redirect(None)
    if _host_stdout:
        _host_stdout.close()


def silence() -> None:
    """Let file descriptors 1 and 2 lead nowhere: who writes to a pipe that has no reader fails, or is killed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.dup2(null, STDERR)
    os.close(null)


class _BinaryStream(io.RawIOBase):
    """sys.stdout.buffer or sys.stderr.buffer; keeps nothing back."""

    mode = "wb"
    _line_is_blank = True  # of the line that the real stderr is in, whichever stream wrote it

    def __init__(self, fd: int) -> None:
        self.redirected: Write | None = None
        self.name = "<stdout>" if fd == STDOUT else "<stderr>"
        self._fd = fd

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        if self.redirected:
            self.redirected(self._fd, data)
        else:
            os.write(STDERR, self._not_json(data))
        return len(data)

    def _not_json(self, data: bytes) -> bytes:
        """The data, with "> " before what could be read as a record: {"@timestamp": 1}, say, would end the host."""
        lines = data.split(b"\n")
        for number, line in enumerate(lines):
            blank = number > 0 or _BinaryStream._line_is_blank
            if blank and line.lstrip().startswith(b"{"):
                lines[number] = b"> " + line
            _BinaryStream._line_is_blank = blank and not line.strip()
        return b"\n".join(lines)

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
