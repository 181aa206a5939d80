"""stdout and stderr. From `import goplugin` on, only the handshake line reaches the host's stdout.

File descriptor 1 becomes stderr, which the host logs. So C libraries and child processes cannot break the handshake,
and cannot block later on a pipe that the host no longer reads. sys.stdout and sys.stderr lead there too until the
plugin serves. Then they lead to the host's SyncStdout and SyncStderr (see services/stdio.py).
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

    host_stdout, host_stderr: our private descriptors of the host's pipes; -1 before `take`, and once they are closed.
    mark: begins each frame on stderr; empty if stderr does not lead to a companion.
    exit_text: the text of sys.exit("text"), which the interpreter prints at the end of main().
    handshake_printed: the handshake line, or a reason why there is none, was written.
    """

    def __init__(self) -> None:
        self.host_stdout = self.host_stderr = -1
        self.mark = b""
        self.exit_text = ""
        self.handshake_printed = False
        self._handshake = b""  # the line, until it is printed
        self._after_handshake: Write | None = None
        self._companion_died: Callable[[], object] | None = None
        self._streams: list[_TextStream] = []
        self._before: tuple[Any, Any] = (sys.stdout, sys.stderr)

    def take(self) -> None:
        """Keep the host's stdout and stderr to ourselves. From now on nothing reaches its stdout by accident."""
        while (fd := null()) <= STDERR:
            pass  # the host closed one of the three before it started us: a later file would take its number
        os.close(fd)
        # os.dup() makes them not inheritable: a child that lives on would keep the host waiting for the pipes' end.
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
        """In a child by fork without exec: leave the host's pipes, and the stream to the host, to the parent."""
        self.redirect(None)
        self._handshake, self._companion_died = b"", None
        self.close_stdout()
        if self.host_stderr >= 0:
            os.close(self.host_stderr)
            self.host_stderr = -1

    def close_stdout(self) -> None:
        """Close the host's stdout. Nothing follows on it."""
        fd, self.host_stdout = self.host_stdout, -1
        if fd >= 0:
            os.close(fd)

    def send_stderr_to(self, pipe: int, mark: bytes, companion_died: Callable[[], object]) -> None:
        """Let file descriptors 1 and 2 lead to the companion's pipe.

        companion_died(): called if nobody reads the pipe; returns whether the companion has died.
        """
        os.dup2(pipe, STDERR)
        os.dup2(pipe, STDOUT)
        self.mark, self._companion_died = mark, companion_died

    def redirect(self, write: Write | None) -> None:
        """Let sys.stdout and sys.stderr call write(STDOUT or STDERR, data). None: they lead to stderr again."""
        for stream in self._streams:
            stream.binary.redirected = write

    def name(self) -> str:
        """Return an id of stderr's pipe with the mark's token. Children pass it to `join`."""
        return f"{_identity(STDERR)}:{frames.token(self.mark)}"

    def join(self, name: str) -> bool:
        """In a child by exec: take over the mark if stderr leads to the plugin's companion. Return whether it does.

        name: what `name` returned in the plugin.
        """
        pipe, _, token = name.rpartition(":")
        joined = bool(pipe) and pipe == _identity(STDERR)
        if sys.platform == "win32":  # pipes have no identity there; children of multiprocessing always have our stderr
            joined = joined and "--multiprocessing-fork" in sys.orig_argv
        if joined:
            self.mark = frames.mark(token)
        return joined

    def write_stderr(self, data: bytes) -> None:
        """Write all of the data to the real stderr."""
        try:
            write_all(STDERR, data)
        except OSError as error:  # Windows: EINVAL
            reads_nobody = error.errno in (errno.EPIPE, errno.EINVAL)
            if not (reads_nobody and self._companion_died and self._companion_died()):
                raise

    def write_record(self, record: bytes) -> None:
        """Write a log record, a line of ASCII. It arrives whole whatever else writes to stderr meanwhile."""
        for piece in frames.encode(record, self.mark) if self.mark else [record]:
            self.write_stderr(piece)

    def expect_handshake(self, line: str, then: Write) -> None:
        """When main() prints this line, write it to the host's stdout. Pass what it prints after that to `then`."""
        self._handshake, self._after_handshake = line.encode(), then
        self.handshake_printed = self.host_stdout < 0  # with --debug a person sees whether main() prints it

    def tell_host(self, reason: str) -> None:
        """Write one line to the host's stdout instead of the handshake line. The host quotes it in its own error."""
        if self.host_stdout >= 0 and not self.handshake_printed:
            self.handshake_printed = True
            with contextlib.suppress(OSError):
                os.write(
                    self.host_stdout, f"goplugin: {reason.strip().splitlines()[0][:500]}\n".encode(errors="replace")
                )

    def take_handshake(self, data: bytes) -> tuple[bytes, bool]:
        """Write the handshake line in the data to the host. Return the rest, and whether the newline is yet to come."""
        if not self._handshake or self._handshake not in data:
            return data, False
        before, _, after = data.partition(self._handshake)
        line, self._handshake = self._handshake, b""
        if not self.handshake_printed:
            self.handshake_printed = True
            self.redirect(self._after_handshake)  # first: once the host has the line it calls, and handlers may print
            os.write(self.host_stdout, line + b"\n")
        return before + _without_line_end(after), not after


def _without_line_end(data: bytes) -> bytes:
    return data.removeprefix(b"\r").removeprefix(b"\n")  # a stream around ours may write Windows' newlines


def null() -> int:
    """Return a descriptor of /dev/null, or of a pipe without a writer where /dev/null does not exist."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        read, write = os.pipe()
        os.close(write)
        return read


def open_descriptors() -> list[int]:
    """Return the open descriptors of this process, and perhaps closed ones."""
    for folder in ("/dev/fd", "/proc/self/fd"):
        with contextlib.suppress(OSError):
            return list(map(int, os.listdir(folder)))
    return list(range(os.sysconf("SC_OPEN_MAX")))


def close_sockets(addresses: Collection[Any]) -> None:
    """Close the sockets that listen at one of the addresses, or are connected to it, or from it.

    Their numbers stay in use. Otherwise the C code that owns a number could close a new file that has it.
    """
    names = {address.address for address in addresses}
    for fd in open_descriptors() if names else []:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and names & set(_names(socket.socket(fileno=os.dup(fd)))):
                os.dup2(nothing := null(), fd, inheritable=False)
                os.close(nothing)


def _names(connection: socket.socket) -> Iterator[str]:
    """Yield the addresses of both ends, and close the socket."""
    with connection:
        for name in (connection.getsockname, connection.getpeername):
            with contextlib.suppress(OSError):  # not connected
                said = name()
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    # Where IPv6 exists, grpc's sockets for IPv4 addresses are IPv6 sockets.
                    yield f"{said[0].removeprefix('::ffff:')}:{said[1]}"
                else:
                    yield str(said)


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data, however often the pipe is full."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # a child that shares the pipe has set O_NONBLOCK
            select.select([], [fd], [])


def _identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


class _BinaryStream(io.RawIOBase):
    """sys.stdout.buffer or sys.stderr.buffer, without a buffer."""

    mode = "wb"

    def __init__(self, streams: StandardStreams, fd: int) -> None:
        self.redirected: Write | None = None
        self.name = "<stdout>" if fd == STDOUT else "<stderr>"
        self._streams, self._fd = streams, fd
        self._printer = 0  # the thread that has printed the handshake line, but not yet its newline

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        rest = self._without_handshake(data) if self._fd == STDOUT else data
        if rest and self.redirected:
            self.redirected(self._fd, rest)
        elif rest:
            self._streams.write_stderr(rest)
        return len(data)

    def _without_handshake(self, data: bytes) -> bytes:
        if self._printer == threading.get_ident():  # print() writes the text and then the newline
            self._printer = 0
            return _without_line_end(data)
        rest, open_ended = self._streams.take_handshake(data)
        self._printer = threading.get_ident() if open_ended else self._printer
        return rest

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return 1 or 2, for child processes and faulthandler. Both lead to stderr."""
        return self._fd


class _TextStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr. It passes text on before print() returns."""

    def __init__(self, streams: StandardStreams, fd: int) -> None:
        self._streams, self.binary = streams, _BinaryStream(streams, fd)
        raw: Any = self.binary
        # backslashreplace: print() must not raise for text that UTF-8 cannot express.
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

    def write(self, text: str) -> int:
        main_thread = threading.main_thread()
        # The main thread is no longer alive when exit handlers run.
        if self.binary.fileno() == STDERR and threading.current_thread() is main_thread and main_thread.is_alive():
            try:
                sys._getframe(1)
            except ValueError:
                # No Python code is running: the interpreter itself prints the text of sys.exit(). See log.py.
                self._streams.exit_text += text
        return super().write(text)
