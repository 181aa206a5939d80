"""plugin.GRPCStdio: what the plugin prints reaches the host; mirrors go-plugin's grpc_stdio.go.

After the handshake sys.stdout and sys.stderr write here (see outputs.py), and the host copies what it reads to
SyncStdout and SyncStderr of its ClientConfig.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from goplugin import host_pb2, host_pb2_grpc, outputs

LIMIT = 1 << 20  # bytes kept for a host that does not read as fast as the plugin prints
PATIENCE = 5.0  # seconds that a print waits for a host that reads nothing at all; then it is dropped

_MESSAGE = 64 * 1024  # bytes in one message at most

_log = logging.getLogger("goplugin.stdio")

Channel = host_pb2.StdioData.Channel
_CHANNELS = {outputs.STDOUT: Channel.STDOUT, outputs.STDERR: Channel.STDERR}


class Stdio(host_pb2_grpc.GRPCStdioServicer):
    """Between print and the host: bounded, in order, and never blocking a handler for good."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[tuple[Channel, bytes]] = deque()
        self._size = 0  # bytes in _chunks
        self._read = 0  # messages that hosts took so far: progress, for those who wait for room
        self._sending = 0  # messages taken and not yet sent
        self._readers = 0
        self._dropping = False
        self._dropped = {Channel.STDOUT: 0, Channel.STDERR: 0}  # bytes since the last report
        self._closed = False

    def write(self, fd: int, data: bytes) -> None:
        """Hand over bytes for the host; waits while LIMIT is reached, drops them if the host stopped reading."""
        channel = _CHANNELS[fd]
        for start in range(0, len(data), _MESSAGE):
            chunk = data[start : start + _MESSAGE]
            with self._changed:
                if self._has_room():
                    self._chunks.append((channel, chunk))
                    self._size += len(chunk)
                    self._changed.notify_all()
                else:
                    self._dropped[channel] += len(chunk)

    def _has_room(self) -> bool:
        """Whether there is room for a chunk now or after waiting for a host that reads. Called with the lock held."""
        progress, deadline = self._read, time.monotonic() + PATIENCE
        while self._size >= LIMIT and not (self._dropping or self._closed):
            if not self._changed.wait(deadline - time.monotonic()) and self._read == progress:
                self._dropping = True
                _log.warning("the host does not read what this plugin prints: dropped from now on")
            elif self._read != progress:
                progress, deadline = self._read, time.monotonic() + PATIENCE
        return self._size < LIMIT and not self._closed

    def StreamStdio(self, request: Any, context: grpc.ServicerContext) -> Iterator[host_pb2.StdioData]:
        def host_left() -> None:
            with self._changed:
                self._changed.notify_all()

        with self._changed:
            self._readers += 1
        try:
            if not context.add_callback(host_left):
                return
            while message := self._next(context):
                try:
                    yield message  # grpc comes back for the next one once this one is sent
                finally:
                    with self._changed:
                        self._sending -= 1
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def _next(self, context: grpc.ServicerContext) -> host_pb2.StdioData | None:
        """The next message for a host, waited for: as much as one channel has in a row. None at the end."""
        with self._changed:
            while not self._chunks:
                if self._closed or not context.is_active():
                    return None
                self._changed.wait()
            if not context.is_active():
                return None  # what it did not take stays for the next host
            channel, data = self._chunks.popleft()
            size, parts = len(data), [data]
            while self._chunks and self._chunks[0][0] == channel and size + len(self._chunks[0][1]) <= _MESSAGE:
                parts.append(self._chunks.popleft()[1])
                size += len(parts[-1])
            self._size -= size
            self._read += 1
            self._sending += 1
            self._dropping = False
            self._report_dropped()
            self._changed.notify_all()
        return host_pb2.StdioData(channel=channel, data=b"".join(parts))

    def drain(self, timeout: float) -> None:
        """Wait until the hosts have what was printed so far, at most timeout seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._readers or not (self._chunks or self._sending), timeout)

    def close(self) -> None:
        """Let the streams end once all is sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def count_unread(self) -> None:
        """Log how much was printed that no host took; once nobody can any more."""
        with self._changed:
            for channel, chunk in self._chunks:
                self._dropped[channel] += len(chunk)
            self._chunks.clear()
            self._report_dropped()

    def _report_dropped(self) -> None:
        for channel, count in self._dropped.items():
            if count:
                self._dropped[channel] = 0
                _log.warning("%d bytes of %s dropped: the host did not read them", count, Channel.Name(channel).lower())
