"""Where output goes, from `import goplugin` on: the host's stdout is for the handshake line alone.

File descriptor 1 becomes stderr, which the host logs. So C libraries and child processes can neither break the
handshake nor block later on a pipe that nobody reads. sys.stdout and sys.stderr go there too until the plugin serves,
and then to the host's SyncStdout and SyncStderr (see services/stdio.py).
"""

import contextlib
import errno
import io
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from goplugin import frames

STDOUT, STDERR = 1, 2  # file descriptors

Write = Callable[[int, bytes], None]


class StandardStreams:
    """stdout and stderr of this process.

    host_stdout, host_stderr: descriptors of the host's pipes that are ours alone, once they are taken; else -1.
    mark: what frames on stderr begin with; empty if stderr does not lead to a companion.
    exit_text: what sys.exit("text") said, as the interpreter printed it at the end of main().
    handshake_printed: the handshake line was printed, or something else was written in its place.
    """

    def __init__(self) -> None:
        self.host_stdout = self.host_stderr = -1
        self.mark = b""
        self.exit_text = ""
        self.handshake_printed = False
        self._handshake = b""  # the line that step 4 has still to print
        self._after_handshake: Write | None = None
        self._companion_died: Callable[[], object] | None = None
        self._streams: list[_TextStream] = []
        self._before: tuple[Any, Any] = (sys.stdout, sys.stderr)

    def take(self) -> None:
        """Keep the host's stdout and stderr to ourselves. From now on nothing reaches that stdout by accident."""
        while (fd := null()) <= STDERR:
            pass  # started with one of the three closed: the next file would take its place
        os.close(fd)
        # Not inheritable: a child that lives on would keep the host waiting for the end of these pipes.
        self.host_stdout, self.host_stderr = os.dup(STDOUT), os.dup(STDERR)
        os.dup2(STDERR, STDOUT)
        self._before = sys.stdout, sys.stderr
        self._streams = [_TextStream(self, STDOUT), _TextStream(self, STDERR)]
        sys.stdout, sys.stderr = self._streams

    def give_back(self) -> None:
        """Undo `take`."""
        for fd, ours in ((STDOUT, self.host_stdout), (STDERR, self.host_stderr)):
            os.dup2(ours, fd)
            os.close(ours)
        self.host_stdout = self.host_stderr = -1
        self.mark = b""
        sys.stdout, sys.stderr = self._before

    def leave_to_parent(self) -> None:
        """In a child by fork without exec: the host's pipes, and the stream to the host, are the parent's."""
        self.redirect(None)
        self._handshake, self._companion_died = b"", None
        self.close_stdout()
        if self.host_stderr >= 0:
            os.close(self.host_stderr)
            self.host_stderr = -1

    def close_stdout(self) -> None:
        """Close the host's stdout: nothing comes on it any more."""
        fd, self.host_stdout = self.host_stdout, -1
        if fd >= 0:
            os.close(fd)

    def send_stderr_to(self, pipe: int, mark: bytes, companion_died: Callable[[], object]) -> None:
        """Let stderr, and with it stdout, lead to the companion's pipe. companion_died: called if nobody reads it."""
        os.dup2(pipe, STDERR)
        os.dup2(pipe, STDOUT)
        self.mark, self._companion_died = mark, companion_died

    def redirect(self, write: Write | None) -> None:
        """Have sys.stdout and sys.stderr call write(STDOUT or STDERR, data); None: stderr again, as at first."""
        for stream in self._streams:
            stream.binary.redirected = write

    def name(self) -> str:
        """Return an id of stderr's pipe and the token of the mark, which children pass to `join`."""
        return f"{_identity(STDERR)}:{frames.token(self.mark)}"

    def join(self, name: str) -> bool:
        """In a child that was started anew: whether its stderr leads to the companion. name: the plugin's."""
        pipe, _, token = name.rpartition(":")
        joined = bool(pipe) and pipe == _identity(STDERR)
        if sys.platform == "win32":  # where pipes have no identity, and these children always have ours
            joined = joined and "--multiprocessing-fork" in sys.orig_argv
        if joined:
            self.mark = frames.mark(token)
        return joined

    def write_stderr(self, data: bytes) -> None:
        """Write to the real stderr, all of it."""
        try:
            write_all(STDERR, data)
        except OSError as error:  # Windows: EINVAL
            reads_nobody = error.errno in (errno.EPIPE, errno.EINVAL)
            if not (reads_nobody and self._companion_died and self._companion_died()):
                raise

    def write_record(self, record: bytes) -> None:
        """Write a log record, a line of ASCII, so that it arrives whole whatever else writes to stderr meanwhile."""
        for piece in frames.encode(record, self.mark) if self.mark else [record]:
            self.write_stderr(piece)

    def expect_handshake(self, line: str, then: Write) -> None:
        """Pass this line on to the host's stdout when it is printed, and all that is printed after it to `then`."""
        self._handshake, self._after_handshake = line.encode(), then
        self.handshake_printed = self.host_stdout < 0  # with --debug a person sees whether it is

    def tell_host(self, reason: str) -> None:
        """Write one line to the host's stdout instead of the handshake line: the host quotes it in its own error."""
        if self.host_stdout >= 0 and not self.handshake_printed:
            self.handshake_printed = True
            with contextlib.suppress(OSError):
                os.write(
                    self.host_stdout, f"goplugin: {reason.strip().splitlines()[0][:500]}\n".encode(errors="replace")
                )

    def take_handshake(self, data: bytes) -> tuple[bytes, bool]:
        """Pass the handshake line on to the host; return the data without it, and whether the line's end must come."""
        if not self._handshake or self._handshake not in data:
            return data, False
        before, _, after = data.partition(self._handshake)
        line, self._handshake = self._handshake, b""
        if not self.handshake_printed:
            self.handshake_printed = True
            self.redirect(self._after_handshake)  # first: the host calls as soon as it has the line; handlers may print
            os.write(self.host_stdout, line + b"\n")
        return before + _without_line_end(after), not after


def _without_line_end(data: bytes) -> bytes:
    return data.removeprefix(b"\r").removeprefix(b"\n")  # a stream around ours may write Windows' line ends


def null() -> int:
    """Return a descriptor of nothing, also where there is no /dev/null."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        read, write = os.pipe()
        os.close(write)
        return read


def open_descriptors() -> list[int]:
    """Return the open descriptors of this process, and perhaps some that are not open."""
    for folder in ("/dev/fd", "/proc/self/fd"):
        with contextlib.suppress(OSError):
            return list(map(int, os.listdir(folder)))
    return list(range(os.sysconf("SC_OPEN_MAX")))


def close_sockets(addresses: Collection[Any]) -> None:
    """Close the sockets that listen at one of the addresses, or are connected there. Their numbers stay taken.

    Otherwise the C code that owns them could close a new file with that number.
    """
    names = {address.address for address in addresses}
    for fd in open_descriptors() if names else []:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and names & set(_names(socket.socket(fileno=os.dup(fd)))):
                os.dup2(nothing := null(), fd, inheritable=False)
                os.close(nothing)


def _names(connection: socket.socket) -> Iterator[str]:
    """Return both ends' addresses."""
    with connection:
        for name in (connection.getsockname, connection.getpeername):
            with contextlib.suppress(OSError):  # it is not connected
                said = name()
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    # grpc listens with IPv6 sockets, if there are any, at IPv4 addresses too.
                    yield f"{said[0].removeprefix('::ffff:')}:{said[1]}"
                else:
                    yield str(said)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however often the descriptor is full."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # a child that shares it has set O_NONBLOCK
            select.select([], [fd], [])


def _identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


class _BinaryStream(io.RawIOBase):
    """sys.stdout.buffer or sys.stderr.buffer; keeps nothing back."""

    mode = "wb"

    def __init__(self, streams: StandardStreams, fd: int) -> None:
        self.redirected: Write | None = None
        self.name = "<stdout>" if fd == STDOUT else "<stderr>"
        self._streams, self._fd = streams, fd
        self._printer = 0  # the thread that has printed the handshake line and has still to end it

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        rest = self._without_handshake(data) if self._fd == STDOUT else data
        if rest and self.redirected:
            self.redirected(self._fd, rest)
        elif rest:
            self._streams.write_stderr(rest)
        return len(data)

    def _without_handshake(self, data: bytes) -> bytes:
        if self._printer == threading.get_ident():  # print() writes the text and the line's end one after the other
            self._printer = 0
            return _without_line_end(data)
        rest, open_ended = self._streams.take_handshake(data)
        self._printer = threading.get_ident() if open_ended else self._printer
        return rest

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For child processes and faulthandler: stderr, by the number that this stream is known by."""
        return self._fd


class _TextStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr; what a handler prints is on its way when print returns."""

    def __init__(self, streams: StandardStreams, fd: int) -> None:
        self._streams, self.binary = streams, _BinaryStream(streams, fd)
        raw: Any = self.binary
        # backslashreplace: print must not raise for what UTF-8 cannot express.
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

    def write(self, text: str) -> int:
        main_thread = threading.main_thread()
        # It is not alive any more when exit handlers run.
        if self.binary.fileno() == STDERR and threading.current_thread() is main_thread and main_thread.is_alive():
            try:
                sys._getframe(1)
            except ValueError:
                # No Python code is running: the interpreter itself prints what was given to sys.exit(). See log.py.
                self._streams.exit_text += text
        return super().write(text)
