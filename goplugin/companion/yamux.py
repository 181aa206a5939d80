"""yamux, without sockets: streams over one connection, as bytes in and bytes out.

Mirrors github.com/hashicorp/yamux (spec.md there). A frame is a header, and in data frames what it carries:

| version: 0, 1 byte | type, 1 byte | flags, 2 bytes | stream's id, 4 bytes | length, 4 bytes |

The client opens streams with odd ids, the server with even ones. A side may send on a stream what the other one has
room for: 256 KiB, and again what the other one has read since, which it tells by window updates.

Go's yamux also pings every 30 s, and ends the session if there is no answer. This one answers, and does not ping: the
connection does not leave the machine, and a host that a debugger has stopped must keep its plugin.
"""

import struct
from collections.abc import Callable

WINDOW = 256 * 1024  # bytes of a stream that a side takes before it has read any

_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_NORMAL, _PROTOCOL_ERROR = 0, 1  # why a side goes away
_MOST_PENDING = 1 << 20  # bytes that wait to be sent, beyond which streams send no more


class YamuxError(OSError):
    """The session has ended. The text says why."""


class Stream:
    """A stream, with those methods of a socket that does not block that a relay uses."""

    def __init__(self, session: "Session", number: int) -> None:
        self._session, self._number = session, number
        self._received = bytearray()
        self._room = self._window = WINDOW  # bytes that we still take, and that the other side still takes
        self._read = 0  # bytes, since the other side was told
        self._ended = self._closed = False  # the other side's half, and ours
        self._reset = self._resets = False  # it was cut; close() cuts it

    @property
    def readable(self) -> bool:
        """Whether recv() would return or raise something."""
        return bool(self._received) or self._ended or self._reset

    @property
    def writable(self) -> bool:
        """Whether send() would take or raise something."""
        return self._reset or (self._window > 0 and self._session.has_room())

    def recv(self, size: int) -> bytes:
        """Return what has come, b"" at the end. BlockingIOError if nothing has, ConnectionResetError if it was cut."""
        if self._reset:
            raise ConnectionResetError("the stream was reset")
        if not self.readable:
            raise BlockingIOError
        data = bytes(self._received[:size])
        del self._received[:size]
        self._read += len(data)
        if self._read >= WINDOW // 2 and not self._ended:
            self._session.send(_WINDOW_UPDATE, 0, self._number, self._read)
            self._room += self._read
            self._read = 0
        return data

    def send(self, data: memoryview) -> int:
        """Send as much as the other side has room for, and return how much that was. Errors are those of recv()."""
        if self._reset:
            raise ConnectionResetError("the stream was reset")
        if not self.writable:
            raise BlockingIOError
        data = data[: self._window]
        self._window -= len(data)
        self._session.send(_DATA, 0, self._number, len(data), data)
        return len(data)

    def shutdown(self, how: int) -> None:
        """End our half. how: ignored; it is what a socket calls SHUT_WR."""
        if not self._closed and not self._reset:
            self._closed = True
            self._session.send(_WINDOW_UPDATE, _FIN, self._number)
            self._forget_if_over()

    def setsockopt(self, *linger: object) -> None:
        """Have close() cut the stream: sockets do that by SO_LINGER."""
        self._resets = True

    def close(self) -> None:
        """Let go of the stream. What comes from now on is thrown away."""
        over = self._ended and self._closed
        if self._resets and not over and not self._reset:
            self._session.send(_WINDOW_UPDATE, _RST, self._number)
        else:
            self.shutdown(0)
        self._session.forget(self._number)

    def take(self, kind: int, flags: int, length: int, data: bytearray) -> None:
        """Take a frame for this stream. YamuxError if it may not come."""
        if self._ended and (data or flags & _FIN):
            raise YamuxError(f"a frame after the end of stream {self._number}")
        if kind == _DATA:
            self._room -= length
            if self._room < 0:
                raise YamuxError(f"more bytes on stream {self._number} than there is room for")
            self._received += data
        else:
            self._window += length
            if self._window > 0xFFFFFFFF:
                raise YamuxError(f"the window of stream {self._number} is too large")
        self._ended |= bool(flags & _FIN)
        self._reset |= bool(flags & _RST)
        self._forget_if_over()

    def cut(self) -> None:
        """The session has ended."""
        self._reset = True

    def _forget_if_over(self) -> None:
        if self._reset or (self._ended and self._closed):
            self._session.forget(self._number)


class Session:
    """One connection's streams: give it what arrives, and send what it has to say.

    changed: the streams that may be readable or writable by now; to be emptied by who reads it.
    """

    def __init__(self, accept: Callable[[Stream], None], wake: Callable[[], None], *, client: bool = False) -> None:
        """accept: called with each stream that the other side opens. wake: called when there is something to send."""
        self.changed: set[Stream] = set()
        self._accept, self._wake = accept, wake
        self._streams: dict[int, Stream] = {}  # by id
        self._next, self._last = (1, 0) if client else (2, -1)  # our next id; the other side's last
        self._in, self._out = bytearray(), bytearray()
        self._gone_away = False

    def open(self) -> Stream:
        """Open a stream. YamuxError if the other side takes none any more."""
        if self._gone_away:
            raise YamuxError("the other side takes no more streams")
        number, self._next = self._next, self._next + 2
        self._streams[number] = stream = Stream(self, number)
        self.send(_WINDOW_UPDATE, _SYN, number)
        return stream

    def receive(self, data: bytes) -> None:
        """Take bytes. YamuxError if they violate the protocol: then all streams are cut, and output() says why."""
        self._in += data
        start = 0
        try:
            while len(self._in) - start >= _HEADER.size:
                version, kind, flags, number, length = _HEADER.unpack_from(self._in, start)
                if version or kind > _GO_AWAY:
                    raise YamuxError(f"a frame of version {version} and type {kind}")
                if kind == _DATA and length > WINDOW:
                    raise YamuxError(f"a frame of {length} bytes")
                body = start + _HEADER.size
                end = body + (length if kind == _DATA else 0)
                if end > len(self._in):
                    break
                self._take(kind, flags, number, length, self._in[body:end])
                start = end
        except YamuxError:
            self.end(_PROTOCOL_ERROR)
            raise
        finally:
            del self._in[:start]

    def output(self) -> bytes:
        """Return, once, the bytes to send."""
        if not self.has_room():
            self.changed.update(self._streams.values())  # which may send again
        data, self._out = bytes(self._out), bytearray()
        return data

    def has_output(self) -> bool:
        """Whether there is something to send."""
        return bool(self._out)

    def has_room(self) -> bool:
        """Whether streams may send: not too much waits for the connection."""
        return len(self._out) < _MOST_PENDING

    def end(self, reason: int = _NORMAL) -> None:
        """Say goodbye, and cut all streams."""
        self.send(_GO_AWAY, 0, 0, reason)
        for stream in self._streams.values():
            stream.cut()
        self.changed.update(self._streams.values())
        self._streams.clear()

    def send(self, kind: int, flags: int, number: int, length: int = 0, data: bytes | memoryview = b"") -> None:
        """Send a frame; for streams."""
        if not self._out:
            self._wake()
        self._out += _HEADER.pack(0, kind, flags, number, length)
        self._out += data

    def forget(self, number: int) -> None:
        """The stream is over; for streams."""
        self._streams.pop(number, None)

    def _take(self, kind: int, flags: int, number: int, length: int, data: bytearray) -> None:
        if kind == _PING:
            if flags & _SYN:
                self.send(_PING, _ACK, 0, length)
        elif kind == _GO_AWAY:
            if length != _NORMAL:
                raise YamuxError(f"the other side ended it, with code {length}")
            self._gone_away = True
        else:
            if flags & _SYN:
                self._open(number)
            # Frames for a stream that we have closed may still be on their way.
            if stream := self._streams.get(number):
                self.changed.add(stream)
                stream.take(kind, flags, length, data)

    def _open(self, number: int) -> None:
        if number <= self._last or (number - self._next) % 2 == 0:
            raise YamuxError(f"stream {number} was opened, and may not be")
        self._last = number
        self._streams[number] = stream = Stream(self, number)
        self.send(_WINDOW_UPDATE, _ACK, number)
        self._accept(stream)
