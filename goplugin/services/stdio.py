"""plugin.GRPCStdio: what the plugin prints reaches the host; mirrors go-plugin's grpc_stdio.go.

After the handshake sys.stdout and sys.stderr write here (see outputs.py), and the host copies what it reads to
SyncStdout and SyncStderr of its ClientConfig.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from goplugin import log, outputs
from goplugin.services import host_pb2, host_pb2_grpc

LIMIT = 1 << 20  # bytes kept for the host, beyond which a print waits; each print is kept whole
LOOP_LIMIT = 64 << 20  # the same for an event loop and grpc's threads, which must not wait: they send the bytes
PATIENCE = 5.0  # seconds that a print waits for a host that reads nothing; then the output is dropped

_MESSAGE = 64 * 1024  # bytes in one message at most

Channel = host_pb2.StdioData.Channel
_CHANNELS = {outputs.STDOUT: Channel.STDOUT, outputs.STDERR: Channel.STDERR}

_log = log.get_logger("goplugin.stdio")


class Stdio(host_pb2_grpc.GRPCStdioServicer):
    """Keeps what is printed until the host reads it: in order, bounded, and without blocking a handler for ever."""

    def __init__(self) -> None:
        # Reentrant: garbage collection may call a __del__ that prints at any moment. There must be no second lock:
        # such a print would take the two in another order.
        self._changed = threading.Condition(threading.RLock())
        self._chunks: deque[tuple[Channel, bytearray]] = deque()  # one is a message for the host
        self._size = 0  # bytes in _chunks
        self._read = 0  # messages that hosts took so far: shows progress to writers that wait for room
        self._readers: dict[int, bool] = {}  # threads that send to a host; whether they do just now
        self._dropping = False
        self._dropped = dict.fromkeys(_CHANNELS.values(), 0)  # bytes since the last report
        self._closed = False
        self._never_wait: set[int] = set()  # more threads without which nothing is read

    def never_wait_in(self, thread: int) -> None:
        """Have `write` not wait in the thread of this ident: it is one of those that send the bytes to the host."""
        self._never_wait.add(thread)

    def write(self, fd: int, data: bytes) -> None:
        """Keep bytes for the host, in one piece. Wait while LIMIT is reached; drop them if the host does not read."""
        channel = _CHANNELS[fd]
        with self._changed:
            was_dropping = self._dropping
            if not self._has_room():
                self._dropped[channel] += len(data)
            else:
                self._size += len(data)
                last = self._chunks[-1] if self._chunks else (None, bytearray())
                if last[0] == channel and len(last[1]) + len(data) <= _MESSAGE:
                    last[1].extend(data)
                else:
                    for start in range(0, len(data), _MESSAGE):
                        self._chunks.append((channel, bytearray(data[start : start + _MESSAGE])))
                    self._changed.notify_all()
            starts_dropping = self._dropping and not was_dropping
        if starts_dropping:  # logged without the lock: a handler of logging may print, and would wait for the lock
            _log.warning("the host does not read what this plugin prints: dropped from now on")

    def _has_room(self) -> bool:
        """Wait for room as long as the host reads; whether there is room. Call it with the lock held."""
        thread = threading.get_ident()
        if thread in self._never_wait or thread in self._readers:
            self._dropping = self._dropping or self._size >= LOOP_LIMIT
            return not (self._dropping or self._closed)
        progress, deadline = self._read, time.monotonic() + PATIENCE
        while self._size >= LIMIT and not (self._dropping or self._closed):
            in_time = self._changed.wait(deadline - time.monotonic())
            if self._read != progress:
                progress, deadline = self._read, time.monotonic() + PATIENCE
            elif not in_time:
                self._dropping = True
        return self._size < LIMIT and not self._closed

    def StreamStdio(self, request: Any, context: grpc.ServicerContext) -> Iterator[host_pb2.StdioData]:
        """Stream what is printed. If two hosts are connected, each piece goes to one of them."""

        def host_left() -> None:
            with self._changed:
                self._changed.notify_all()

        thread = threading.get_ident()
        try:
            if context.add_callback(host_left):
                while message := self._next(context, thread):
                    self._report_dropped()
                    yield message  # grpc comes back for the next one once this one is sent
        finally:
            with self._changed:
                self._readers.pop(thread, None)
                self._changed.notify_all()

    def _next(self, context: grpc.ServicerContext, thread: int) -> host_pb2.StdioData | None:
        """Wait for the next message for a host, and return it; None at the end."""
        with self._changed:
            self._readers[thread] = False
            self._changed.notify_all()
            while not self._chunks:
                if self._closed or not context.is_active():
                    return None
                self._changed.wait()
            if not context.is_active():
                return None  # what it did not take stays for the next host
            channel, data = self._chunks.popleft()
            self._size -= len(data)
            self._read += 1
            self._readers[thread] = True
            self._dropping = False
            self._changed.notify_all()
        return host_pb2.StdioData(channel=channel, data=bytes(data))

    def drain(self, timeout: float) -> None:
        """Wait until the hosts have what was printed so far, at most timeout seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: not any(self._chunks or sending for sending in self._readers.values()), timeout
            )

    def close(self) -> None:
        """Let the streams end when everything is sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def count_unread(self) -> None:
        """Log how much was printed that no host has read. Call it when no host can read any more."""
        with self._changed:
            for channel, data in self._chunks:
                self._dropped[channel] += len(data)
            self._chunks.clear()
        self._report_dropped()

    def _report_dropped(self) -> None:
        with self._changed:
            dropped, self._dropped = self._dropped, dict.fromkeys(self._dropped, 0)
        for channel, count in dropped.items():
            if count:
                _log.warning("%d bytes of %s dropped: the host did not read them", count, Channel.Name(channel).lower())
