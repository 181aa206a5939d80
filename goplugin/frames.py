r"""Keeps log records whole on a pipe that carries other output too. Bytes in, bytes out, no file descriptors.

The plugin and its descendants all write to this pipe: it is their stderr. The system keeps a write of up to PIPE_BUF
bytes in one piece. Writes of others may split a longer one. So a log record travels in frames that are short enough,
and the companion joins them:

    MARK " " NAME " " ("+" if more follows, "." if it ends here) PIECE "\n"

MARK ends with a random token that only the plugin and its children know. So text from elsewhere cannot imitate a frame.
NAME is the same in all frames of a record. PIECE is ASCII without control characters.
"""

import itertools
import json
import os
import select

# The host reads lines of up to 64 KiB whole (its PluginLogBufferSize). This leaves room for "> " and the line's end.
LINE_LIMIT = 64 * 1024 - 3

_MOST_RECORDS = 100  # unfinished records; beyond these the oldest is dropped, because its writer was killed
_count = itertools.count()


def mark(token: str) -> bytes:
    """Return the mark that begins each frame. Its first byte is ASCII's record separator, which is rare in output."""
    return b"\x1egoplugin:" + token.encode()


def token(mark: bytes) -> str:
    """Return the token of a mark."""
    return mark.rpartition(b":")[2].decode()


def encode(record: bytes, mark: bytes, limit: int = getattr(select, "PIPE_BUF", 512)) -> list[bytes]:
    """Return the frames of a record. Write each with one system call. limit: the system's PIPE_BUF, in bytes."""
    name = b"%d.%d" % (os.getpid(), next(_count))
    record = record.rstrip(b"\n")
    size = limit - len(mark) - len(name) - 4
    pieces = [record[start : start + size] for start in range(0, len(record), size)] or [b""]
    return [b"%b %b %b%b\n" % (mark, name, b"+" if piece is not pieces[-1] else b".", piece) for piece in pieces]


class Decoder:
    """Turns the bytes of the pipe into lines for the host."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark + b" "
        self._rest = b""  # an unfinished line
        self._records: dict[bytes, bytearray] = {}  # unfinished records, by name

    def decode(self, data: bytes) -> bytes:
        """Return the lines that this data completes, each with its end. A record becomes one line.

        A line longer than LINE_LIMIT is cut, as the host would cut it. The host panics at JSON whose "@message",
        "@level" or "@timestamp" is not a string; such a line gets "> " in front.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        out: list[bytes] = []
        before = b""  # output that a frame interrupted; the rest of its line follows the frame
        for line in lines:
            text, found, frame = line.partition(self._mark)
            before += text
            if found:
                out += self._record(frame)
            else:
                out += _plain(before)
                before = b""
        self._rest = before + self._rest
        while len(self._rest) > LINE_LIMIT:
            piece = (self._rest.partition(self._mark)[0] or self._rest)[:LINE_LIMIT]
            out += _plain(piece)
            self._rest = self._rest[len(piece) :]
        return b"".join(out)

    def end(self) -> bytes:
        """Return the unfinished line and the unfinished records, as lines."""
        left = [self._rest, *map(bytes, self._records.values())]
        return b"".join(line for text in left if text for line in _plain(text))

    def _record(self, frame: bytes) -> list[bytes]:
        name, _, piece = frame.partition(b" ")
        record = self._records.pop(name, bytearray())
        record += piece[1:]
        if piece[:1] != b"+" or len(record) > LINE_LIMIT:  # log.py writes no longer ones
            return _plain(bytes(record))
        if len(self._records) >= _MOST_RECORDS:
            del self._records[next(iter(self._records))]
        self._records[name] = record
        return []


def _plain(line: bytes) -> list[bytes]:
    """Return the line as lines that are safe for the host."""
    pieces = [line[start : start + LINE_LIMIT] for start in range(0, len(line), LINE_LIMIT)] or [line]
    return [(b"" if _is_safe(piece) else b"> ") + piece + b"\n" for piece in pieces]


def _is_safe(line: bytes) -> bool:
    """Whether the host can read the line. It panics (log_entry.go) if one of these values is not a string."""
    if not line.lstrip().startswith(b"{"):
        return True
    try:
        values = json.loads(line.decode())
        return all(isinstance(values.get(key, ""), str) for key in ("@message", "@level", "@timestamp"))
    except (ValueError, RecursionError):  # Python cannot parse it, but Go perhaps can
        return False
