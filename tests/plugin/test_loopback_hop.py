"""Without Unix sockets in Python, companion and grpc talk over TLS on loopback, which nobody else can use."""

import contextlib
import os
import socket
import ssl
import sys
from pathlib import Path

import probe
import psutil
import pytest
from actions import dials
from certificates import HTTP2, client_context, make_certificate, served
from cryptography.hazmat.primitives.asymmetric import ec
from harness import PLUGINS, CallError, Host, World, eventually
from probe_plugin import Probe

from goplugin.companion import hop
from goplugin.companion.tls import TLS, TLSError, contexts_for
from goplugin.services import host_pb2

pytestmark = pytest.mark.windows


def start(world: World) -> Host:
    if hasattr(socket, "AF_UNIX"):
        world.env["PYTHONPATH"] = f"{PLUGINS / 'no_unix_sockets'}{os.pathsep}{world.env['PYTHONPATH']}"
    return probe.start(world)


def ports(process: psutil.Process) -> set[int]:
    """The ports on which the process listens."""
    connections = process.net_connections("tcp")
    found = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    if sys.platform == "win32" and not found:
        pytest.skip("Wine does not list the ports of a process")
    return found


def test_calls_pass(world: World) -> None:
    host = start(world)
    assert probe.do(host, Probe.echo, "x" * 5_000_000) == "x" * 5_000_000
    assert not list(world.temporary.iterdir())  # neither a folder of sockets nor a key
    assert host.ask("kill")["seconds"] < 4
    assert world.gone()


def test_the_broker_both_ways(world: World) -> None:
    host = start(world)
    for service_id in (5, 6):
        if world.multiplexed:  # otherwise the host serves on a Unix socket, which it never does on Windows
            host.ask("accept", broker=service_id)
            assert probe.do(host, Probe.dial, [service_id, "x", 100_000]) == "the same"
        ours = probe.do(host, Probe.next_id)
        probe.do(host, Probe.accept, ours)
        host.ask("dial", broker=ours)
        assert probe.do(host, Probe.echo, "x", broker=ours) == "x"
        probe.do(host, Probe.close, ours)


def is_let_in(port: int, world: World, who: str) -> bool:
    """Whether such a caller gets an HTTP/2 answer on the port."""
    if who == "without TLS":
        with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
            connection.sendall(HTTP2)
            with contextlib.suppress(ConnectionError):
                return connection.recv(1) not in (b"", b"\x15")  # a TLS alert
            return False
    if who == "no certificate":
        return served(port, client_context(None))
    curve = ec.SECP521R1() if who == "P-521" else ec.SECP256R1()
    return served(port, client_context(make_certificate(world.folder, "stranger", curve=curve)))


STRANGERS = ["without TLS", "no certificate", "P-256", "P-521"]


def test_strangers_are_refused_by_grpc(world: World) -> None:
    host = start(world)
    (port,) = ports(world.plugin())
    for who in STRANGERS:
        assert not is_let_in(port, world, who)
    assert probe.do(host, Probe.echo, "the host is served") == "the host is served"


def test_strangers_reach_nothing_by_what_the_plugin_dials(world: World) -> None:
    if world.on_asyncio or world.multiplexed:
        pytest.skip("the listener is open only for a moment there")
    host = start(world)
    with socket.create_server(("127.0.0.1", 0)) as served_by_host:
        served_by_host.settimeout(10)
        before = ports(world.companion())
        host.ask("open", stream=1, method="/plugin.GRPCBroker/StartStream")
        address = f"127.0.0.1:{served_by_host.getsockname()[1]}"
        info = host_pb2.ConnInfo(service_id=5, network="tcp", address=address)
        host.ask("send", stream=1, message=info.SerializeToString())
        probe.act(host, dials.dial_and_keep, 5)
        (port,) = ports(world.companion()) - before
        for who in STRANGERS:
            assert not is_let_in(port, world, who)
        refusals = lambda: sum("refused a caller" in record["@message"] for record in host.log())  # noqa: E731
        assert eventually(lambda: refusals() == len(STRANGERS))
        served_by_host.setblocking(False)
        with pytest.raises(BlockingIOError):
            served_by_host.accept()
        served_by_host.settimeout(10)
        with pytest.raises(CallError):
            probe.act(host, dials.call_what_was_dialled)
        served_by_host.accept()[0].close()


def test_only_grpc_may_be_in_grpcs_place(tmp_path: Path) -> None:
    ours, others = (hop.LoopbackHop(str, str(tmp_path)) for _ in range(2))
    assert not list(tmp_path.iterdir())  # no key stays
    for made, right in ((ours, True), (others, False)):
        key, certificate, companions = made.credentials
        peer = ssl.PEM_cert_to_DER_cert(companions)
        grpcs = TLS(contexts_for(peer, certificate.encode(), key.encode(), str(tmp_path)), dials=False)
        companion = ours.tls(dials=True)
        with contextlib.nullcontext() if right else pytest.raises(TLSError, match="self.signed"):
            for _ in range(4):
                for sender, receiver in ((companion, grpcs), (grpcs, companion)):
                    if data := sender.output():
                        receiver.receive(data)
        assert companion.established == right
