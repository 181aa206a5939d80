"""The relay passes on the ends and resets of either side, and buffers little for a slow side."""

import contextlib
import errno
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import certificate_in, client_context, make_certificate
from harness import eventually

from goplugin.address import Address
from goplugin.companion import relay, tls
from goplugin.environment import Environment
from goplugin.testing.tls_thread import TLSThread

MB = 1_000_000


class Ends:
    """Both ends of a connection through a relay: the caller's and grpc's."""

    def __init__(self, folder: Path) -> None:
        self.path = make_certificate(folder, "host")
        contexts = tls.auto_mtls_contexts(certificate_in(self.path), str(folder))
        self._thread = TLSThread(contexts, Environment(), str(folder))
        self.inside = self._thread._connections
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "plain"))
        self._listener.listen()
        self.accept = self._listener.accept
        _, address = self._thread.ask("listen", "unix", str(folder / "plain"))
        self.where = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.caller = client_context(self.path).wrap_socket(socket.create_connection(self.where))
        self.grpc, _ = self.accept()
        for end in (self.caller, self.grpc):
            end.settimeout(10)

    def connections(self) -> int:
        """How many sockets of the connection the relay still has."""
        return len(self._thread._loop._callbacks) - 2  # not counting those for commands and for the listener

    def close(self) -> None:
        for end in (self.caller, self.grpc, self._listener):
            end.close()
        self._thread.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.close()


def receive_all(end: socket.socket) -> bytes:
    received = b""
    while data := end.recv(1 << 20):
        received += data
    return received


def test_the_callers_end_passes_through_and_answers_come_back(ends: Ends) -> None:
    """The caller half-closes: it sends no more, but still reads."""
    ends.caller.sendall(b"request")
    with pytest.raises((TimeoutError, ssl.SSLError, OSError)):
        ends.caller.settimeout(0.2)
        ends.caller.unwrap()  # sends its end and waits for the other end, which does not come
    assert receive_all(ends.grpc) == b"request"
    ends.grpc.sendall(b"x" * MB)
    ends.grpc.close()
    assert eventually(lambda: ends.connections() == 0)


def test_grpcs_end_passes_through_and_requests_still_go_in(ends: Ends) -> None:
    ends.grpc.sendall(b"answer")
    ends.grpc.shutdown(socket.SHUT_WR)
    assert receive_all(ends.caller) == b"answer"
    ends.caller.sendall(b"and more")
    assert ends.grpc.recv(100) == b"and more"
    ends.caller.close()
    assert ends.grpc.recv(100) == b""
    assert eventually(lambda: ends.connections() == 0)


@pytest.mark.parametrize("side", ["caller", "grpc"])
def test_a_side_that_has_ended_where_a_second_shutdown_fails(
    ends: Ends, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS. What the other side still sends arrives, piece by piece, and the relay resets nothing."""
    ended, other = (ends.caller, ends.grpc) if side == "caller" else (ends.grpc, ends.caller)
    shutdown, were_shut = socket.socket.shutdown, set[socket.socket]()
    close, cuts = relay.Relay._close, list[bool]()

    def shutdown_once(self: socket.socket, how: int) -> None:
        if self in were_shut:
            raise OSError(errno.ENOTCONN, "Socket is not connected")
        were_shut.add(self)
        shutdown(self, how)

    def close_and_note(self: relay.Relay, *, reset: bool = False) -> None:
        cuts.append(reset)
        close(self, reset=reset)

    monkeypatch.setattr(socket.socket, "shutdown", shutdown_once)
    monkeypatch.setattr(relay.Relay, "_close", close_and_note)
    if side == "grpc":
        shutdown(ended, socket.SHUT_WR)
    else:
        ended.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ends.caller.unwrap()  # sends its end and waits for the other end
        ended.settimeout(10)
    assert other.recv(100) == b""
    for number in range(3):
        other.sendall(b"%d" % number)
        assert ended.recv(100) == b"%d" % number
    other.close()
    assert eventually(lambda: ends.connections() == 0)
    assert cuts == [False]


def test_room_is_made_by_refusing_others(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no descriptor is left for grpc's side, the relay drops a stranger, although the host connected earlier."""
    host = socket.create_connection(ends.where)
    with socket.create_connection(ends.where, timeout=10) as stranger:
        assert eventually(lambda: len(ends.inside._handshakes) == 2)
        connect, errors = ends.inside._hop.connect, [OSError(errno.EMFILE, "Too many open files")]

        def connect_later(plain: Address) -> socket.socket:
            if errors:
                raise errors.pop()
            return connect(plain)

        monkeypatch.setattr(ends.inside._hop, "connect", connect_later)
        with client_context(ends.path).wrap_socket(host) as caller:
            grpc, _ = ends.accept()
            with grpc:
                caller.sendall(b"served")
                assert grpc.recv(100) == b"served"
                assert stranger.recv(1) == b""


@pytest.mark.parametrize("side", ["caller", "grpc"])
def test_a_reset_passes_through(ends: Ends, side: str) -> None:
    cut, other = (ends.caller, ends.grpc) if side == "caller" else (ends.grpc, ends.caller)
    other.sendall(b"never read")
    time.sleep(0.2)
    cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cut.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert other.recv(100) == b""
    assert eventually(lambda: ends.connections() == 0)


@pytest.mark.parametrize("slow", ["caller", "grpc"])
def test_a_slow_reader_costs_no_memory(ends: Ends, slow: str) -> None:
    """After a few MB the relay makes the sender wait; nothing is lost."""
    sender, reader = (ends.caller, ends.grpc) if slow == "grpc" else (ends.grpc, ends.caller)
    data = b"".join(b"%08d" % number for number in range(4 * MB))
    sent = 0
    sender.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += sender.send(data[sent : sent + 65536])
    assert sent < 12 * MB, "the relay buffered everything"
    sender.settimeout(20)
    rest = threading.Thread(target=sender.sendall, args=(data[sent:],))
    rest.start()
    received = bytearray()
    while len(received) < len(data):
        received += reader.recv(1 << 20)
    rest.join()
    assert bytes(received) == data


LISTENS = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
listener = socket.create_server(sys.argv[1], family=socket.AF_UNIX)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("uid", [0, 65534])
def test_another_users_process_is_not_taken_for_grpc(uid: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, uid, -1)
        command = [sys.executable, "-c", LISTENS, f"{folder}/socket", str(uid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout and process.stdout.readline()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"{folder}/socket")
                with pytest.raises(PermissionError) if uid else contextlib.nullcontext():
                    relay.check_peer(connection)
            process.stdin.close()
