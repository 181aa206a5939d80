"""yamux without sockets: streams over one connection, as bytes in and bytes out.

Mirrors github.com/hashicorp/yamux (spec.md there). A frame is a header; in a data frame, `length` bytes follow:

| version: 0, 1 byte | type, 1 byte | flags, 2 bytes | stream's id, 4 bytes | length, 4 bytes |

The client opens streams with odd ids, the server with even ones. On each stream, a side may send 256 KiB that the other
side has not read yet. With window updates the other side reports how much it has read.

Go's yamux also pings every 30 s, and ends the session if no answer comes. This module answers pings, but sends none:
the connection does not leave the machine, and a host that a debugger has stopped must keep its plugin.
"""

import struct
from collections.abc import Callable

WINDOW = 256 * 1024  # bytes of a stream that a side accepts before it has read any

_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_NORMAL, _PROTOCOL_ERROR = 0, 1  # why a side goes away
_MOST_PENDING = 1 << 20  # bytes that wait to be sent; beyond these, streams send no more


class YamuxError(OSError):
    """The session has ended. The text says why."""


class Stream:
    """A stream. It has those methods of a non-blocking socket that a relay uses."""

    def __init__(self, session: "Session", number: int) -> None:
        self._session, self._number = session, number
        self._received = bytearray()
        self._room = self._window = WINDOW  # bytes that we still accept, and that the other side still accepts
        self._ended = self._closed = False  # whether the other side's half has ended, and ours
        self.reset = self._resets = False  # whether the stream was cut, and whether close() will cut it

    def readable(self) -> bool:
        """Whether recv() would return bytes or raise an error."""
        return bool(self._received) or self._ended or self.reset

    def writable(self) -> bool:
        """Whether send() would accept bytes or raise an error."""
        return self.reset or (self._window > 0 and self._session.has_room())

    def recv(self, size: int) -> bytes:
        """Return received bytes, b"" at the end. BlockingIOError if there are none, ConnectionResetError if cut."""
        self._check(self.readable())
        data = bytes(self._received[:size])
        del self._received[:size]
        read = WINDOW - self._room - len(self._received)  # bytes that the other side does not know of yet
        if read >= WINDOW // 2 and not self._ended:
            self._room += read
            self._session.send(_WINDOW_UPDATE, 0, self._number, read)
        return data

    def send(self, data: memoryview) -> int:
        """Send as many bytes as the other side accepts, and return how many. Raises the same errors as recv()."""
        self._check(self.writable())
        data = data[: self._window]
        self._window -= len(data)
        self._session.send(_DATA, 0, self._number, len(data), data)
        return len(data)

    def shutdown(self, how: int) -> None:
        """End our half. how: ignored; for a socket it is SHUT_WR."""
        if not self._closed and not self.reset:
            self._closed = True
            self._session.send(_WINDOW_UPDATE, _FIN, self._number)

    def setsockopt(self, *linger: object) -> None:
        """Let close() cut the stream. For a socket, SO_LINGER does this."""
        self._resets = True

    def close(self) -> None:
        """Close the stream. Bytes that still come are dropped."""
        if self._resets and not self.reset:
            self._session.send(_WINDOW_UPDATE, _RST, self._number)
        else:
            self.shutdown(0)
        self._session.streams.pop(self._number, None)

    def take(self, flags: int, length: int, data: bytes = b"") -> None:
        """Take a frame for this stream. YamuxError if the frame violates the protocol."""
        # Data may come after the end: in Go, one goroutine may close a stream while another one writes to it.
        if self._ended and flags & _FIN:
            raise YamuxError(f"a second end of stream {self._number}")
        self._received += data
        self._room -= len(data)
        self._window += length - len(data)  # nonzero only for a window update
        if self._room < 0 or self._window > 0xFFFFFFFF:
            raise YamuxError(f"more on stream {self._number} than there is room for")
        self._ended |= bool(flags & _FIN)
        self.reset |= bool(flags & _RST)

    def _check(self, ready: bool) -> None:
        if self.reset:
            raise ConnectionResetError("the stream was reset")
        if not ready:
            raise BlockingIOError


class Session:
    """One connection's streams: pass it what arrives, and send what output() returns.

    streams: the open streams, by id.
    changed: the streams that may have become readable or writable. The reader of this set empties it.
    """

    def __init__(self, accept: Callable[[Stream], None], wake: Callable[[], None], *, client: bool = False) -> None:
        """accept(stream): called for each stream that the other side opens. wake(): called when output() has bytes."""
        self.changed: set[Stream] = set()
        self._accept, self._wake = accept, wake
        self.streams: dict[int, Stream] = {}
        self._next, self._last = (1, 0) if client else (2, -1)  # our next id; the other side's last
        self._in, self._out = bytearray(), bytearray()

    def open(self) -> Stream:
        """Open a stream."""
        number, self._next = self._next, self._next + 2
        self.streams[number] = stream = Stream(self, number)
        self.send(_WINDOW_UPDATE, _SYN, number)
        return stream

    def receive(self, data: bytes) -> None:
        """Take received bytes. YamuxError if they violate the protocol; then end the session."""
        self._in += data
        start, end = 0, _HEADER.size
        while end <= len(self._in):
            version, kind, flags, number, length = _HEADER.unpack_from(self._in, start)
            if version or kind > _GO_AWAY or (kind == _DATA and length > WINDOW):
                raise YamuxError(f"a frame of version {version}, type {kind} and {length} bytes")
            body, end = end, end + length * (kind == _DATA)
            if end <= len(self._in):
                self._take(kind, flags, number, length, bytes(self._in[body:end]))
                start, end = end, end + _HEADER.size
        del self._in[:start]

    def output(self) -> bytes:
        """Return, once, the bytes to send; b"" if there are none."""
        if not self.has_room():
            self.changed.update(self.streams.values())  # they can send again
        data, self._out = bytes(self._out), bytearray()
        return data

    def has_room(self) -> bool:
        """Whether streams may send, because less than _MOST_PENDING bytes wait for the connection."""
        return len(self._out) < _MOST_PENDING

    def end(self, *, violated: bool) -> None:
        """Tell the other side that the session ends, and cut all streams. violated: it has violated the protocol."""
        self.send(_GO_AWAY, 0, 0, _PROTOCOL_ERROR if violated else _NORMAL)
        self.changed.update(self.streams.values())
        for stream in self.streams.values():
            stream.reset = True
        self.streams.clear()

    def send(self, kind: int, flags: int, number: int, length: int = 0, data: bytes | memoryview = b"") -> None:
        """Send a frame. For streams only."""
        self._out += _HEADER.pack(0, kind, flags, number, length)
        self._out += data
        self._wake()

    def _take(self, kind: int, flags: int, number: int, length: int, data: bytes) -> None:
        if kind == _PING and flags & _SYN:
            self.send(_PING, _ACK, 0, length)
        elif kind == _GO_AWAY and length != _NORMAL:
            raise YamuxError(f"the other side ended it, with code {length}")
        elif kind in (_DATA, _WINDOW_UPDATE):
            if flags & _SYN:
                if number <= self._last or (number - self._next) % 2 == 0:
                    raise YamuxError(f"stream {number} was opened, and may not be")
                self._last = number
                self.streams[number] = Stream(self, number)
                self.send(_WINDOW_UPDATE, _ACK, number)
                self._accept(self.streams[number])
            # Frames for a stream that we have closed may still arrive: drop them.
            if stream := self.streams.get(number):
                self.changed.add(stream)
                stream.take(flags, length, data)
