"""yamux by plain calls, with garbage, and with github.com/hashicorp/yamux on the other side."""

import contextlib
import random
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import SUPPORT
from yamux_frames import ACK, DATA, FIN, GO_AWAY, PING, SYN, UPDATE, frame

from goplugin.companion.yamux import WINDOW, Session, Stream, YamuxError

MB = 1_000_000


class Side:
    """A session, and the streams that the other side has opened."""

    def __init__(self, *, client: bool = False) -> None:
        self.accepted: list[Stream] = []
        self.session = Session(self.accepted.append, lambda: None, client=client)


class Pair:
    """Two sessions that talk to each other."""

    def __init__(self) -> None:
        self.client, self.server = Side(client=True), Side()

    def pass_on(self, chunk: int = 1 << 20) -> None:
        """Pass the output of each side to the other until both are silent."""
        while True:
            said = [(side.session.output(), other) for side, other in self.both()]
            if not any(data for data, _ in said):
                return
            for data, other in said:
                for start in range(0, len(data), chunk):
                    other.session.receive(data[start : start + chunk])

    def both(self) -> list[tuple[Side, Side]]:
        return [(self.client, self.server), (self.server, self.client)]

    def stream(self, opener: str = "client") -> tuple[Stream, Stream]:
        """The two ends of a new stream."""
        sides = self.both() if opener == "client" else self.both()[::-1]
        stream = sides[0][0].session.open()
        self.pass_on()
        return stream, sides[0][1].accepted.pop()


def send(stream: Stream, data: bytes) -> int:
    return stream.send(memoryview(data))


@pytest.mark.parametrize("opener", ["client", "server"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_bytes_both_ways_and_the_end(opener: str, chunk: int) -> None:
    pair = Pair()
    ours, theirs = pair.stream(opener)
    for stream in (ours, theirs):
        with pytest.raises(BlockingIOError):
            stream.recv(10)
    send(ours, b"ping")
    send(ours, b", twice")
    send(theirs, b"pong")
    pair.pass_on(chunk)
    assert theirs.recv(4) == b"ping"
    assert theirs.recv(100) == b", twice"
    assert ours.recv(100) == b"pong"
    # Half-closed: the other half goes on.
    ours.shutdown(socket.SHUT_WR)
    pair.pass_on(chunk)
    assert theirs.recv(100) == b""
    send(theirs, b"still here")
    theirs.shutdown(socket.SHUT_WR)
    pair.pass_on(chunk)
    assert ours.recv(100) == b"still here"
    assert ours.recv(100) == b""
    ours.close()
    theirs.close()
    assert not pair.client.session.streams
    assert not pair.server.session.streams


def test_no_more_is_sent_than_there_is_room_for() -> None:
    pair = Pair()
    ours, theirs = pair.stream()
    assert send(ours, bytes(MB)) == WINDOW
    with pytest.raises(BlockingIOError):
        send(ours, b"x")
    assert not ours.writable()
    pair.pass_on()
    assert len(theirs.recv(WINDOW // 2 - 1)) == WINDOW // 2 - 1  # too little for an update
    pair.pass_on()
    assert not ours.writable()
    theirs.recv(1)
    pair.pass_on()
    assert ours in pair.client.session.changed
    assert send(ours, bytes(MB)) == WINDOW // 2


def test_a_stream_that_is_cut() -> None:
    pair = Pair()
    ours, theirs = pair.stream()
    send(ours, b"lost")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"")
    ours.close()
    pair.pass_on()
    assert theirs.readable()
    assert theirs.writable()
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)
    with pytest.raises(ConnectionResetError):
        send(theirs, b"x")
    theirs.close()
    pair.pass_on()
    assert not pair.server.session.streams


def test_what_comes_for_a_closed_stream_is_thrown_away() -> None:
    pair = Pair()
    ours, theirs = pair.stream()
    ours.close()
    send(theirs, b"too late")
    pair.pass_on()
    assert theirs.recv(1) == b""
    other, _ = pair.stream()
    assert send(other, b"x") == 1


def test_what_comes_after_the_end_is_no_violation() -> None:
    """In Go, one goroutine may close a stream while another one still writes."""
    side = Side()
    side.session.receive(OPENED + frame(UPDATE, FIN, 1, 0) + frame(DATA, 0, 1, 1, b"x") + frame(UPDATE, SYN, 3, 0))
    assert len(side.accepted) == 2


def test_pings_are_answered() -> None:
    side = Side()
    side.session.receive(frame(PING, SYN, 0, 4711) + frame(PING, ACK, 0, 1))
    assert side.session.output() == frame(PING, ACK, 0, 4711)


def test_streams_of_a_side_that_goes_away_go_on() -> None:
    pair = Pair()
    ours, theirs = pair.stream()
    pair.client.session.receive(frame(GO_AWAY, 0, 0, 0))
    send(ours, b"x")
    pair.pass_on()
    assert theirs.recv(10) == b"x"


def test_the_end_of_the_session_cuts_all_streams() -> None:
    pair = Pair()
    ours, _ = pair.stream()
    pair.client.session.end(violated=False)
    assert pair.client.session.output() == frame(GO_AWAY, 0, 0, 0)
    with pytest.raises(ConnectionResetError):
        ours.recv(1)


OPENED = frame(UPDATE, SYN, 1, 0)
VIOLATIONS = {
    "another version": (frame(PING, SYN, 0, 1, version=1), "version 1"),
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "version 80"),
    "a type that there is not": (frame(4, 0, 0, 0), "type 4"),
    "a stream opened twice": (OPENED + OPENED, "stream 1 was opened"),
    "an id of ours": (frame(UPDATE, SYN, 2, 0), "stream 2 was opened"),
    "the id 0": (frame(DATA, SYN, 0, 0), "stream 0 was opened"),
    "an older id": (frame(UPDATE, SYN, 3, 0) + OPENED, "stream 1 was opened"),
    "more than the window": (OPENED + frame(DATA, 0, 1, WINDOW, bytes(WINDOW)) + frame(DATA, 0, 1, 1, b"x"), "room"),
    "a frame longer than any window": (OPENED + frame(DATA, 0, 1, WINDOW + 1), "262145 bytes"),
    "more than the window, after the end": (
        OPENED + frame(DATA, FIN, 1, 1, b"x") + frame(DATA, 0, 1, WINDOW, bytes(WINDOW)),
        "room",
    ),
    "two ends": (OPENED + frame(UPDATE, FIN, 1, 0) * 2, "a second end of stream 1"),
    "a window beyond 32 bits": (OPENED + frame(UPDATE, 0, 1, 0xFFFFFFFF), "more on stream 1"),
    "an error of the other side's": (frame(GO_AWAY, 0, 0, 2), "with code 2"),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_violations_end_the_session(what: str) -> None:
    data, reason = VIOLATIONS[what]
    side = Side()
    with pytest.raises(YamuxError, match=reason):
        side.session.receive(data)
    side.session.end(violated=True)
    assert side.session.output().endswith(frame(GO_AWAY, 0, 0, 1))
    for stream in side.accepted:
        with pytest.raises(ConnectionResetError):
            stream.recv(1)


@pytest.mark.parametrize("_", range(20))
def test_random_frames(_: int) -> None:
    """The session accepts or refuses any frame, in bounded memory, and raises nothing but YamuxError."""
    side, frames = Side(), 0
    room: dict[int, int] = {}  # of the open streams, by id
    try:
        while True:
            frames += 1
            side.session.receive(garbled(random_frame(room)))
            for stream in random.sample(side.accepted, min(3, len(side.accepted))):
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    if random.random() < 0.1:
                        stream.close()
                    elif not send(stream, b"x" * 5000):
                        stream.recv(1000)
            assert len(side.session._in) <= WINDOW + 12
            assert all(len(stream._received) <= WINDOW for stream in side.session.streams.values())
            assert len(side.session._out) <= 2 << 20
            if random.random() < 0.1:
                side.session.output()
    except YamuxError:
        assert frames


def random_frame(room: dict[int, int]) -> bytes:
    """A random frame; most are valid."""
    if random.random() < 0.002:
        return frame(random.randrange(6), random.randrange(16), random.getrandbits(32), random.getrandbits(32))
    if random.random() < 0.1:
        return frame(PING, random.choice([SYN, ACK]), 0, random.getrandbits(32))
    if not room or random.random() < 0.05:
        number = max(room, default=-1) + 2
        room[number] = WINDOW
        return frame(UPDATE, SYN, number, 0)
    number = random.choice(list(room))
    if random.random() < 0.3:
        return frame(UPDATE, 0, number, random.randrange(1 << 16))
    data = random.randbytes(min(room[number], random.choice([0, 1, 100, 70_000])))
    room[number] -= len(data)
    return frame(DATA, 0, number, len(data), data)


def garbled(data: bytes) -> bytes:
    """The same data, rarely with one bit flipped."""
    if random.random() < 0.001:
        changed = bytearray(data)
        changed[random.randrange(12)] ^= 1 << random.randrange(8)
        return bytes(changed)
    return data


@pytest.fixture(scope="module")
def peer_binary(programs: Path) -> Path:
    subprocess.run(["go", "build", "-o", programs / "yamux", "./yamux"], cwd=SUPPORT / "host", check=True)
    return programs / "yamux"


class Peer:
    """hashicorp/yamux in a separate process, and a session of goplugin's with it."""

    def __init__(self, binary: Path, folder: Path, side: str, what: str, streams: int, size: int) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen()
        command = [str(binary), side, str(folder / "socket"), what, str(streams), str(size)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.connection = listener.accept()[0]
        listener.close()
        self.connection.settimeout(60)
        self.side = Side(client=side == "server")
        self.most_held = 0

    def serve(self, use: Callable[[Stream], None]) -> None:
        """Call `use` with each stream that has changed, until the peer leaves."""
        session = self.side.session
        while data := self.receive():
            session.receive(data)
            self.flush(use)

    def flush(self, use: Callable[[Stream], None]) -> None:
        session = self.side.session
        while True:
            while session.changed:
                use(session.changed.pop())
            self.most_held = max(self.most_held, len(session._out))
            if not (output := session.output()):
                return
            self.connection.sendall(output)

    def receive(self) -> bytes:
        try:
            return self.connection.recv(256 * 1024)
        except ConnectionError:
            return b""

    def said(self) -> str:
        self.connection.close()
        return self.process.communicate(timeout=60)[0]


@pytest.fixture
def peer(peer_binary: Path) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(side: str, what: str, streams: int = 1, size: int = 0) -> Peer:
        peers.append(Peer(peer_binary, Path(folder), side, what, streams, size))
        return peers[-1]

    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has at most 107 bytes
        yield start
    for one in peers:
        one.connection.close()
        one.process.kill()
        one.process.communicate()


def echo(stream: Stream) -> None:
    """Send back what arrives, as far as there is room."""
    left = backlog.setdefault(stream, bytearray())
    while True:
        if not left and stream.readable():
            left += stream.recv(WINDOW)
            if not left:
                stream.close()
                return
        if not left or not stream.writable():
            return
        with memoryview(left) as view:
            sent = stream.send(view)
        del left[:sent]


backlog: dict[Stream, bytearray] = {}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_gigabyte_each_way_over_100_streams(peer: Callable[..., Peer], side: str) -> None:
    """The peer opens the streams, pings meanwhile, closes its halves first, and gets back all that it sent."""
    other = peer(side, "exchange", 100, 10 * MB)
    backlog.clear()
    other.serve(echo)
    assert other.said() == "all came back\n"
    assert other.most_held < 4 * MB
    assert not other.side.session.streams


def test_a_side_that_does_not_read(peer: Callable[..., Peer]) -> None:
    """The peer can write one window; so can the session, which also buffers no more than that."""
    other = peer("client", "flood", 1, 10 * MB)
    sent = 0

    def use(stream: Stream) -> None:
        nonlocal sent
        while stream.writable():
            sent += send(stream, bytes(100_000))

    other.serve(use)
    assert other.said() == f"{WINDOW} i/o deadline reached\n"
    assert sent == WINDOW
    assert not other.side.session._in


def test_streams_that_the_peer_refuses(peer: Callable[..., Peer]) -> None:
    """The peer resets the streams beyond its backlog."""
    other = peer("client", "refuse", 3)
    streams = [other.side.session.open() for _ in range(5)]
    other.flush(lambda stream: None)
    other.side.session.receive(other.receive())  # the answer to the last ones: the peer has all of them by now
    assert other.process.stdin
    other.process.stdin.write("\n")
    other.process.stdin.flush()
    answered = 0
    while answered < 5:
        other.side.session.receive(other.receive())
        answered = sum(stream.readable() for stream in streams)
    assert [stream.recv(100) for stream in streams[:3]] == [b"accepted"] * 3
    for stream in streams[3:]:
        with pytest.raises(ConnectionResetError):
            stream.recv(1)


def test_a_stream_that_we_cut(peer: Callable[..., Peer]) -> None:
    other = peer("client", "reset")

    def use(stream: Stream) -> None:
        if stream.readable() and stream.recv(100):
            stream.setsockopt()
            stream.close()

    other.serve(use)
    assert other.said() == "true\n"
