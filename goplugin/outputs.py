"""Where output goes, from `import goplugin` on: the host's stdout is for the handshake line alone.

File descriptor 1 becomes stderr, which the host logs. So C libraries and child processes can neither break the
handshake nor block later on a pipe that nobody reads. sys.stdout and sys.stderr go there too until the plugin serves,
and then to the host's SyncStdout and SyncStderr (see services/stdio.py).
"""

import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

from goplugin import frames

STDOUT, STDERR = 1, 2  # file descriptors

Write = Callable[[int, bytes], None]

host_stdout = host_stderr = -1  # our own descriptors of the host's pipes, once they are taken
exit_text = ""  # what sys.exit("text") said, as the interpreter printed it at the end of main()

_framed = False  # whether file descriptor 2 is the companion's pipe
_handshake = b""  # the line that step 4 has still to print
_after_handshake: Write | None = None
_handshake_printed = False
_watched: Any = None
_streams: list["_TextStream"] = []


def take() -> None:
    """Keep the host's stdout and stderr to ourselves. From now on nothing reaches that stdout by accident."""
    global host_stdout, host_stderr
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass  # started with one of the three closed: whatever is opened next would take its place
    os.close(fd)
    # Not inheritable: a child that lives on would keep the host waiting for the end of these pipes.
    host_stdout, host_stderr = os.dup(STDOUT), os.dup(STDERR)
    os.dup2(STDERR, STDOUT)
    _streams[:] = sys.stdout, sys.stderr = _TextStream(STDOUT), _TextStream(STDERR)


def leave_to_parent() -> None:
    """In a child by fork without exec: the host's pipes, and the stream to the host, are the parent's."""
    redirect(None)
    for fd in (host_stdout, host_stderr):
        with contextlib.suppress(OSError):
            os.close(fd)


def send_stderr_to(fd: int, *, framed: bool) -> None:
    """Let stderr, and with it stdout, lead to fd. framed: it is the companion's pipe, and understands frames."""
    global _framed
    os.dup2(fd, STDERR)
    os.dup2(fd, STDOUT)
    _framed = framed


def redirect(write: Write | None) -> None:
    """Have sys.stdout and sys.stderr call write(STDOUT or STDERR, data); None: stderr again, as at first."""
    for stream in _streams:
        stream.binary.redirected = write


def announce_worker() -> None:
    """Have the companion end this process when the plugin ends."""
    try:
        _write_all(STDERR, b"%bworker %d\n" % (frames.MARK, os.getpid()))
    except BrokenPipeError:
        os._exit(1)  # both have ended already


def join_plugin(pipe: str) -> bool:
    """In a child that was started anew: whether its stderr leads to the companion. pipe: from `stderr_name`."""
    global _framed
    _framed = bool(pipe) and pipe == stderr_name()
    return _framed


def stderr_name() -> str:
    """Return what identifies the pipe that stderr leads to."""
    status = os.fstat(STDERR)
    return f"{status.st_dev}:{status.st_ino}"


def write_record(record: bytes) -> None:
    """Write a log record, a line of ASCII, so that it arrives whole whatever else writes to stderr meanwhile."""
    # Nobody reads the log of a plugin that has outlived its host: that must not stop it.
    with contextlib.suppress(OSError):
        for piece in frames.encode(record) if _framed else [record]:
            _write_all(STDERR, piece)


def expect_handshake(line: str, then: Write) -> None:
    """Pass this line on to the host's stdout when it is printed, and all that is printed after it to `then`."""
    global _handshake, _after_handshake, _watched
    _handshake, _after_handshake = line.encode(), then
    if host_stdout < 0:  # --debug
        # Kept, because print() uses it further after it has gone from sys.stdout.
        _watched = sys.stdout = _Watched(sys.stdout, line)


def handshake_is_missing() -> bool:
    """Whether the line has not been printed yet."""
    return not _handshake_printed


def tell_host(reason: str) -> None:
    """Write one line to the host's stdout instead of the handshake line: the host quotes it in its own error."""
    global _handshake_printed
    if host_stdout >= 0 and not _handshake_printed:
        _handshake_printed = True
        with contextlib.suppress(OSError):
            os.write(host_stdout, f"goplugin: {reason.strip().splitlines()[0][:500]}\n".encode(errors="replace"))


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # a child that shares it has set O_NONBLOCK
            select.select([], [fd], [])


class _Watched:
    """A person's stdout, until the line has been printed there."""

    def __init__(self, stream: Any, line: str) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        global _handshake_printed
        if self._line in text:
            _handshake_printed = True
            sys.stdout = self._stream
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _BinaryStream(io.RawIOBase):
    """sys.stdout.buffer or sys.stderr.buffer; keeps nothing back."""

    mode = "wb"

    def __init__(self, fd: int) -> None:
        self.redirected: Write | None = None
        self.name = "<stdout>" if fd == STDOUT else "<stderr>"
        self._fd = fd
        self._printer = 0  # the thread that has printed the handshake line and has still to end it

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        rest = self._take_handshake(data) if self._fd == STDOUT else data
        if rest and self.redirected:
            self.redirected(self._fd, rest)
        elif rest:
            _write_all(STDERR, rest)
        return len(data)

    def _take_handshake(self, data: bytes) -> bytes:
        """Pass the handshake line on to the host; return the data without it."""
        global _handshake, _handshake_printed
        if self._printer == threading.get_ident():  # print() writes the text and the line's end one after the other
            self._printer = 0
            return data.removeprefix(b"\n")
        if not _handshake or _handshake not in data:
            return data
        before, _, after = data.partition(_handshake)
        self._printer = 0 if after else threading.get_ident()
        line, _handshake = _handshake, b""
        if not _handshake_printed:
            _handshake_printed = True
            redirect(_after_handshake)  # first: the host calls as soon as it has the line, and handlers may print
            os.write(host_stdout, line + b"\n")
        return before + after.removeprefix(b"\n")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For child processes and faulthandler: stderr, by the number that this stream is known by."""
        return self._fd


class _TextStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr; what a handler prints is on its way when print returns."""

    def __init__(self, fd: int) -> None:
        self.binary = _BinaryStream(fd)
        raw: Any = self.binary
        # backslashreplace: print must not raise for what UTF-8 cannot express.
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

    def write(self, text: str) -> int:
        global exit_text
        if self.binary.fileno() == STDERR:
            try:
                sys._getframe(1)
            except ValueError:
                # No Python code is running: the interpreter itself prints what was given to sys.exit(). See log.py.
                exit_text += text
                return len(text)
        return super().write(text)
