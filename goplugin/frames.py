r"""Log records and other output on one pipe: how records stay whole. Bytes in, bytes out, no file descriptors.

The plugin, its children and theirs write to the pipe as stderr, as they please. The system keeps a write of up to
PIPE_BUF bytes in one piece; what is longer may have the writes of others inside. So a log record travels in frames that
are short enough, and the companion puts it together again:

    MARK NAME " " ("+" if more follows, "." if it ends here) PIECE "\n"

NAME is the same in all frames of a record. PIECE is ASCII without control characters. A frame of the name "worker"
holds the pid of a process that must end with the plugin.
"""

import itertools
import json
import os
import select

MARK = b"\x1egoplugin:"  # begins with ASCII's record separator, which ordinary output does not contain
LINE_LIMIT = 64 * 1024  # bytes of a line, its end included, that the host reads whole (its PluginLogBufferSize)

_MOST_RECORDS = 100  # records begun and not ended: beyond these the oldest is given up, its writer was killed
_count = itertools.count()


def encode(record: bytes, limit: int = getattr(select, "PIPE_BUF", 512)) -> list[bytes]:
    """Return the frames of a record, each to be written at once. limit: the system's PIPE_BUF."""
    name = b"%d.%d" % (os.getpid(), next(_count))
    record = record.rstrip(b"\n")
    size = limit - len(MARK) - len(name) - 3
    pieces = [record[start : start + size] for start in range(0, len(record), size)] or [b""]
    return [b"%b%b %b%b\n" % (MARK, name, b"+" if piece is not pieces[-1] else b".", piece) for piece in pieces]


class Decoder:
    """Turns what was read from the pipe into lines for the host."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line
        self._records: dict[bytes, bytes] = {}  # begun, by name
        self.workers: list[int] = []  # pids that were announced; the caller takes them out

    def decode(self, data: bytes) -> bytes:
        """Return the lines, each with its end, that are complete with this data. A record is a line of its own.

        A line of more than 64 KiB is cut, as the host would do. A line that would make the host panic, because it is
        JSON whose "@message", "@level" or "@timestamp" is not a string, gets "> " in front.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        out: list[bytes] = []
        before = b""  # what stood before a frame in its line, and goes on after it
        for line in lines:
            text, mark, frame = line.partition(MARK)
            before += text
            if mark:
                out += self._record(frame)
            else:
                out += _plain(before)
                before = b""
        self._rest = before + self._rest
        while len(self._rest) >= LINE_LIMIT:
            piece = (self._rest.partition(MARK)[0] or self._rest)[: LINE_LIMIT - 3]
            out += _plain(piece)
            self._rest = self._rest[len(piece) :]
        return b"".join(out)

    def end(self) -> bytes:
        """Return what is left: the beginning of a line, and of records."""
        left = [self._rest, *self._records.values()]
        return b"".join(line for text in left if text for line in _plain(text))

    def _record(self, frame: bytes) -> list[bytes]:
        name, _, piece = frame.partition(b" ")
        if name == b"worker" and piece.isdigit() and len(piece) < 10:
            self.workers.append(int(piece))
            return []
        record = self._records.pop(name, b"") + piece[1:]
        if piece[:1] != b"+":
            return [record + b"\n"]
        if len(self._records) >= _MOST_RECORDS:
            del self._records[next(iter(self._records))]
        self._records[name] = record
        return []


def _plain(line: bytes) -> list[bytes]:
    """A line that somebody wrote to stderr, made safe for the host."""
    pieces = [line[start : start + LINE_LIMIT - 3] for start in range(0, len(line), LINE_LIMIT - 3)] or [line]
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
