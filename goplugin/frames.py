r"""Log records and other output on one pipe: how records stay whole. Bytes in, bytes out, no file descriptors.

The plugin, its children and theirs write to the pipe as stderr, as they please. The system keeps a write of up to
PIPE_BUF bytes in one piece; a longer one may have the writes of others inside. So a log record travels in frames that
are short enough, and the companion puts it together again:

    MARK " " NAME " " ("+" if more follows, "." if it ends here) PIECE "\n"

MARK ends with a random token. The plugin and its children know it; text that merely passes through them does not.
NAME is the same in all frames of a record. PIECE is ASCII without control characters.
"""

import itertools
import json
import os
import select

LINE_LIMIT = 64 * 1024 - 3  # bytes of a line that the host reads whole (its PluginLogBufferSize), "> " and end excluded

_MOST_RECORDS = 100  # records begun and not ended: beyond these the oldest is given up, its writer was killed
_count = itertools.count()


def mark(token: str) -> bytes:
    """Return what frames begin with. It holds ASCII's record separator, which ordinary output does not."""
    return b"\x1egoplugin:" + token.encode()


def token(mark: bytes) -> str:
    """Return what `mark` was given."""
    return mark.rpartition(b":")[2].decode()


def encode(record: bytes, mark: bytes, limit: int = getattr(select, "PIPE_BUF", 512)) -> list[bytes]:
    """Return the frames of a record, each to be written at once. limit: the system's PIPE_BUF."""
    name = b"%d.%d" % (os.getpid(), next(_count))
    record = record.rstrip(b"\n")
    size = limit - len(mark) - len(name) - 4
    pieces = [record[start : start + size] for start in range(0, len(record), size)] or [b""]
    return [b"%b %b %b%b\n" % (mark, name, b"+" if piece is not pieces[-1] else b".", piece) for piece in pieces]


class Decoder:
    """Turns what was read from the pipe into lines for the host."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark + b" "
        self._rest = b""  # the beginning of a line
        self._records: dict[bytes, bytearray] = {}  # begun, by name

    def decode(self, data: bytes) -> bytes:
        """Return the lines, each with its end, that are complete with this data. A record is a line of its own.

        A line longer than LINE_LIMIT is cut, as the host would do. A line that would make the host panic, because it
        is JSON whose "@message", "@level" or "@timestamp" is not a string, gets "> " in front.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        out: list[bytes] = []
        before = b""  # what stood before a frame in its line, and goes on after it
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
        """Return what is left: the beginning of a line, and of records."""
        left = [self._rest, *map(bytes, self._records.values())]
        return b"".join(line for text in left if text for line in _plain(text))

    def _record(self, frame: bytes) -> list[bytes]:
        name, _, piece = frame.partition(b" ")
        record = self._records.pop(name, bytearray())
        record += piece[1:]
        if piece[:1] != b"+" or len(record) > LINE_LIMIT:  # none of ours is longer
            return _plain(bytes(record))
        if len(self._records) >= _MOST_RECORDS:
            del self._records[next(iter(self._records))]
        self._records[name] = record
        return []


def _plain(line: bytes) -> list[bytes]:
    """A line that somebody wrote, made safe for the host."""
    pieces = [line[start : start + LINE_LIMIT] for start in range(0, len(line), LINE_LIMIT)] or [line]
    return [(b"" if _is_safe(piece) else b"> ") + piece + b"\n" for piece in pieces]


def _is_safe(line: bytes) -> bool:
    """Whether the host can take the line: it panics (log_entry.go) on a value of these that is not a string."""
    if not line.lstrip().startswith(b"{"):
        return True
    try:
        values = json.loads(line.decode())
        return all(isinstance(values.get(key, ""), str) for key in ("@message", "@level", "@timestamp"))
    except (ValueError, RecursionError):  # not JSON to us, though perhaps to Go
        return False
