"""plugin.GRPCStdio: carries what the plugin prints to the host. Mirrors go-plugin's grpc_stdio.go.

After the handshake, sys.stdout and sys.stderr write here (see standard_streams.py). The host copies what it reads to
SyncStdout and SyncStderr of its ClientConfig.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from goplugin import log, standard_streams
from goplugin.services import host_pb2, host_pb2_grpc

LIMIT = 1 << 20  # bytes kept for the host; beyond these a print waits. Each print is kept whole
LOOP_LIMIT = 64 << 20  # the same while no host reads, and for threads that must not wait; beyond it, drop output
PATIENCE = 5.0  # seconds that a print waits for a host that reads nothing; after that, drop output

_MESSAGE = 64 * 1024  # the most bytes in one message

Channel = host_pb2.StdioData.Channel
_CHANNELS = {standard_streams.STDOUT: Channel.STDOUT, standard_streams.STDERR: Channel.STDERR}

_log = log.get_logger("goplugin.stdio")


class _Lock:
    """A reentrant lock that knows whether the calling thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: list[int] = []  # idents of the threads that hold it, or are about to

    def is_held(self) -> bool:
        return threading.get_ident() in self._holders

    def __enter__(self) -> None:
        self._holders.append(threading.get_ident())
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        self._holders.remove(threading.get_ident())


class Stdio(host_pb2_grpc.GRPCStdioServicer):
    """Keeps printed bytes until the host reads them: in order, within limits, and without blocking a handler for ever.

    At any moment, in any thread, garbage collection may run a __del__ that prints: also while that thread holds the
    lock here, or is about to wait. So the lock is reentrant. A thread that holds it takes no other lock and does not
    wait. Each wait has its own queue, which keeps a wake-up that comes before the wait.
    """

    def __init__(self) -> None:
        self._lock = _Lock()  # guards the following
        self._chunks: deque[tuple[Channel, bytearray]] = deque()  # one is a message for the host
        self._size = 0  # bytes in _chunks
        self._read = 0  # messages that hosts took so far: shows progress to writers that wait for room
        self._readers: dict[int, bool] = {}  # threads that send to a host; whether they do just now
        self._waiting: list[queue.SimpleQueue[None]] = []  # one for each thread that waits for a change of these
        self._dropping = False
        self._dropped = dict.fromkeys(_CHANNELS.values(), 0)  # bytes since the last report
        self._closed = False
        self._never_wait: set[int] = set()  # more threads without which nothing is read

    def never_wait_in(self, thread: int) -> None:
        """Let `write` never wait in the thread with this ident, because that thread sends bytes to the host."""
        self._never_wait.add(thread)

    def write(self, fd: int, data: bytes) -> None:
        """Keep bytes for the host, in one piece. Wait while LIMIT is reached; drop them if the host does not read."""
        channel = _CHANNELS[fd]
        if not self._keep(channel, data) and not (self._limit() == LIMIT and self._keep_later(channel, data)):
            with self._lock:
                self._dropped[channel] += len(data)
                starts_dropping, self._dropping = not (self._dropping or self._closed), True
            if starts_dropping and not self._lock.is_held():  # a handler of logging may print, and wait for the lock
                _log.warning("the host does not read what this plugin prints: dropped from now on")

    def _keep(self, channel: Channel, data: bytes) -> bool:
        """Keep the bytes if there is room. Return whether there was."""
        size, limit = len(data), self._limit()  # it asks whether this thread already holds the lock
        with self._lock:
            if self._size >= limit or self._dropping or self._closed:
                return False
            self._size += size
            last = self._chunks[-1] if self._chunks else None
            if last and last[0] == channel and len(last[1]) + size <= _MESSAGE:
                last[1].extend(data)
            else:
                for start in range(0, size, _MESSAGE):
                    self._chunks.append((channel, bytearray(data[start : start + _MESSAGE])))
                self._notify()
        return True

    def _limit(self) -> int:
        """Return how many bytes to keep: LIMIT if this thread may wait for more room, or LOOP_LIMIT.

        While no host reads, this thread may be the one that is about to serve the host.
        """
        thread = threading.get_ident()
        serves = not self._readers or thread in self._readers or thread in self._never_wait
        return LOOP_LIMIT if serves or self._lock.is_held() else LIMIT

    def _keep_later(self, channel: Channel, data: bytes) -> bool:
        """Wait for room as long as the host reads, then keep the bytes. Return False if it stopped reading."""
        with self._changes() as changes:
            read, left = self._read, PATIENCE
            while not self._keep(channel, data):
                if self._dropping or self._closed or not self._readers:
                    return False
                if read != self._read:
                    read, left = self._read, PATIENCE
                elif left <= 0:
                    return False
                start, longest = time.monotonic(), PATIENCE / 10
                _got(changes, longest)
                # While this process is stopped (SIGSTOP), the host can read nothing: that time must not count.
                left -= min(time.monotonic() - start, longest)
        return True

    @contextlib.contextmanager
    def _changes(self) -> Iterator[queue.SimpleQueue[None]]:
        """Yield a queue that gets an item at each change. First check the state, then wait for an item."""
        changes = queue.SimpleQueue[None]()
        with self._lock:
            self._waiting.append(changes)
        try:
            yield changes
        finally:
            with self._lock:
                self._waiting.remove(changes)

    def _notify(self) -> None:
        """Wake all threads that wait for a change. Hold the lock when you call this."""
        for changes in self._waiting:
            if changes.empty():
                changes.put(None)

    def StreamStdio(self, request: Any, context: grpc.ServicerContext) -> Iterator[host_pb2.StdioData]:
        """Stream what the plugin prints. If two hosts are connected, each piece goes to one of them."""
        thread = threading.get_ident()
        with self._changes() as changes:
            try:
                if context.add_callback(lambda: changes.put(None)):
                    while message := self._next(context, thread, changes):
                        self._report_dropped()
                        yield message  # grpc asks for the next message once this one is sent
            finally:
                with self._lock:
                    self._readers.pop(thread, None)
                    self._notify()

    def _next(
        self, context: grpc.ServicerContext, thread: int, changes: queue.SimpleQueue[None]
    ) -> host_pb2.StdioData | None:
        """Wait for the next message for a host, and return it; None at the end."""
        with self._lock:
            self._readers[thread] = False
            self._notify()
        while context.is_active():  # what it did not take stays for the next host
            with self._lock:
                if self._chunks:
                    channel, data = self._chunks.popleft()
                    size = len(data)
                    self._size -= size
                    self._read += 1
                    self._readers[thread] = True
                    self._dropping = False
                    self._notify()
                    return host_pb2.StdioData(channel=channel, data=bytes(data))
                if self._closed:
                    return None
            changes.get()
        return None

    def drain(self, timeout: float) -> None:
        """Wait until the hosts have everything that was printed so far, at most timeout seconds."""
        end = time.monotonic() + timeout
        with self._changes() as changes:
            while self._is_sending() and _got(changes, end - time.monotonic()):
                pass

    def _is_sending(self) -> bool:
        with self._lock:
            return any(self._chunks or sending for sending in self._readers.values())

    def close(self) -> None:
        """Let the streams end once everything is sent."""
        with self._lock:
            self._closed = True
            self._notify()

    def count_unread(self) -> None:
        """Log how many printed bytes no host has read. Call this when no host can read any more."""
        with self._lock:
            for channel, data in self._chunks:
                self._dropped[channel] += len(data)
            self._chunks.clear()
        self._report_dropped()

    def _report_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, dict.fromkeys(self._dropped, 0)
        for channel, count in dropped.items():
            if count:
                _log.warning("%d bytes of %s dropped: the host did not read them", count, Channel.Name(channel).lower())


def _got(changes: queue.SimpleQueue[None], timeout: float) -> bool:
    """Wait for an item, at most timeout seconds. Return whether there was one."""
    try:
        changes.get(timeout=max(timeout, 0))
    except queue.Empty:
        return False
    return True
