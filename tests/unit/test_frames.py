"""goplugin/frames.py by plain calls: lines and log records share one pipe."""

import json
import random

import pytest

from goplugin.frames import LINE_LIMIT, Decoder, encode, mark

MARK = mark("0123456789abcdef")


def decode(*pieces: bytes) -> bytes:
    decoder = Decoder(MARK)
    return b"".join(decoder.decode(piece) for piece in pieces) + decoder.end()


@pytest.mark.parametrize("size", [0, 1, 100, 470, 512, 4096, 60_000])
@pytest.mark.parametrize("limit", [512, 4096])
def test_a_record_arrives_whole(size: int, limit: int) -> None:
    record = b"x" * size + b"\n"
    frames = encode(record, MARK, limit)
    assert all(len(frame) <= limit and frame.endswith(b"\n") for frame in frames)
    assert decode(*frames) == record
    assert decode(b"".join(frames)) == record


def test_records_and_lines_of_many_writers() -> None:
    """In any order of the writes, and wherever a read ends."""
    generator = random.Random(1)
    records = [b"%d" % number * generator.randrange(5000) + b"\n" for number in range(1, 10)]
    lines = [b"line %d\n" % number for number in range(50)]
    writers = [encode(record, MARK, 512) for record in records] + [[line] for line in lines]
    written = b""
    while writers:
        writer = generator.choice(writers)
        written += writer.pop(0)
        if not writer:
            writers.remove(writer)
    decoder = Decoder(MARK)
    read = b""
    while written:
        size = generator.randrange(1, 700)
        read += decoder.decode(written[:size])
        written = written[size:]
    assert sorted(read.splitlines(keepends=True)) == sorted(records + lines)
    assert decoder.end() == b""


def test_a_line_with_a_record_in_the_middle() -> None:
    assert decode(b"begin ", *encode(b"{}\n", MARK), b"end\n") == b"{}\nbegin end\n"


def test_what_is_left_at_the_end() -> None:
    first, *_ = encode(b"x" * 10_000, MARK, 512)
    assert decode(b"no line end") == b"no line end\n"
    assert decode(first) == b"x" * (len(first) - len(first.rpartition(b" ")[0]) - 3) + b"\n"


def test_a_line_without_end_is_cut_as_the_host_does() -> None:
    read = decode(*[b"y" * 50_000] * 20)
    assert read.replace(b"\n", b"") == b"y" * 1_000_000
    assert max(map(len, read.splitlines(keepends=True))) <= 64 * 1024
    garbage = decode(*[MARK * 10_000] * 5)
    assert max(map(len, garbage.splitlines())) <= LINE_LIMIT


def test_begun_records_are_bounded() -> None:
    decoder = Decoder(MARK)
    for number in range(1000):
        decoder.decode(b"%b %d +%b\n" % (MARK, number, b"x" * 400))
    assert len(decoder.end()) < 100_000


@pytest.mark.parametrize(
    ("line", "safe"),
    [
        ('{"@message": 1}', False),
        (' \t{"@level": null}', False),
        ('{"@timestamp": []}', False),
        ('{"\\u0040message": {}}', False),
        ('{"@message": "a", "@message": 1}', False),
        ('{"@message": "\xff', False),
        ("{" * 100_000, False),
        ('{"@message": "m", "@level": "info"}', True),
        ('{"other": 1}', True),
        ("plain", True),
        ("", True),
        ("[1]", True),
    ],
)
def test_lines_that_would_end_the_host(line: str, safe: bool) -> None:
    read = decode(line.encode("latin-1") + b"\n").splitlines()
    assert read[0].startswith(b"> ") is not safe
    if safe and line.startswith("{"):
        assert json.loads(read[0]) == json.loads(line)


def test_a_cut_line_is_not_made_unsafe_by_the_cut() -> None:
    text = b"z" * (LINE_LIMIT - 3) + b'{"@message": 1}\n'
    for line in decode(text).splitlines():
        assert not line.startswith(b"{")
