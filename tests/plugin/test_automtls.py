"""AutoMTLS: the plugin serves only clients that hold the host's key. Also how the companion ends."""

import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import stat
import sys
import time
from pathlib import Path
from typing import Any

import probe
import psutil
import pytest
from by_hand import HOSTS_VARIABLES, end, line
from certificates import HTTP2, certificate_in, client_context, make_certificate, served
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from harness import PATIENCE, CallError, Host, World, eventually, is_alive
from kv import put
from probe_plugin import Probe

from goplugin.companion import tls

MTLS: dict[str, Any] = {"auto_mtls": True}


def port_of(host: Host) -> int:
    return int(host.ask("start")["address"].rpartition(":")[2])


LOGGED = 10  # the plugin logs this many refusals a minute


def is_refused(connection: socket.socket) -> bool:
    """Whether the plugin has closed the connection."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def refusals(host: Host) -> list[str]:
    return [
        record["@message"]
        for record in host.log()
        if record["@message"].startswith(("refused a caller", "cannot dial")) and record["@level"] == "warn"
    ]


@pytest.mark.parametrize("who", ["no certificate", "P-256", "P-521", "TLS 1.1", "no TLS"])
@pytest.mark.windows
def test_strangers_in_go(world: World, who: str) -> None:
    host = probe.start(world, **MTLS)
    with pytest.raises(CallError):
        host.ask("intrude", method=who)
    reasons = {
        "no certificate": "peer did not return a certificate",
        "TLS 1.1": "unsupported protocol",
        "P-256": "self.signed certificate",
        "P-521": "self.signed certificate",
        "no TLS": "wrong version number|http request",
    }
    assert host.logged("refused a caller from 127.0.0.1", **{"@level": "warn", "@module": "goplugin.companion"})
    time.sleep(0.2)
    (refusal,) = refusals(host)
    assert re.search(reasons[who], refusal)
    assert probe.do(host, Probe.echo, "the host is served") == "the host is served"


@pytest.mark.parametrize("who", ["none", "P-256", "P-521"])
@pytest.mark.windows
def test_strangers_in_python(world: World, who: str) -> None:
    host = probe.start(world, **MTLS)
    curve = ec.SECP256R1() if who == "P-256" else ec.SECP521R1()
    path = None if who == "none" else make_certificate(world.folder, "stranger", curve=curve)
    assert not served(port_of(host), client_context(path))
    assert eventually(lambda: len(refusals(host)) == 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HTTP2, "wrong version number|http request"),
        (b"GET / HTTP/1.1\r\n\r\n", "http request"),
        (b"\x00" * 100, "wrong version|record|unsupported"),
        (random.Random(1).randbytes(5000), ""),
        (b"", "left during the TLS handshake"),
    ],
    ids=["HTTP/2", "HTTP/1", "zeros", "random", "nothing"],
)
@pytest.mark.windows
def test_what_is_not_tls(world: World, data: bytes, reason: str) -> None:
    host = probe.start(world, **MTLS)
    with socket.create_connection(("127.0.0.1", port_of(host)), timeout=15) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while more := connection.recv(4096):
                answer += more
        except ConnectionError:
            pass
    assert b"HTTP" not in answer
    assert len(answer) <= 7  # an alert at most
    assert eventually(lambda: len(refusals(host)) == 1)
    assert re.search(reason, refusals(host)[0])
    assert probe.do(host, Probe.echo, 1) == 1


def hand_started(world: World, client_cert: str, **variables: str) -> Any:
    """Start plugin.py with a host's variables; the test reads its pipes."""
    env = {**world.env, **HOSTS_VARIABLES, "PLUGIN_CLIENT_CERT": client_cert, **variables}
    return world.run(sys.executable, world.kv_plugin, env=env)


@pytest.mark.windows
def test_the_hosts_key_is_let_in_and_an_expired_one_not(world: World) -> None:
    """The plugin accepts the host's own certificate, so the refusals above have no other reason."""
    for name, days, expected in (("good", (-1, 1), True), ("expired", (-2, -1), False), ("early", (1, 2), False)):
        path = make_certificate(world.folder, name, days=days)
        process = hand_started(world, certificate_in(path))
        port = int(line(process).split("|")[3].rpartition(":")[2])
        assert served(port, client_context(path)) is expected, name
        code, _, err = end(process)
        assert code == 0
        assert ("refused" in err) is not expected
        assert err.count("refused") <= 1


@pytest.mark.windows
def test_handshake_line_and_certificate(world: World) -> None:
    process = hand_started(world, certificate_in(make_certificate(world.folder, "host")))
    fields = line(process).rstrip("\n").split("|")
    assert fields[:3] == ["1", "1", "tcp"]
    assert len(fields) == 6
    assert "=" not in fields[5]
    certificate = x509.load_der_x509_certificate(base64.b64decode(fields[5] + "=="))
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert end(process)[0] == 0


def test_with_multiplexing_asked_for(world: World) -> None:
    process = hand_started(world, certificate_in(make_certificate(world.folder, "host")), PLUGIN_MULTIPLEX_GRPC="true")
    fields = line(process).rstrip("\n").split("|")
    assert len(fields) == 7
    assert fields[6] == "true"
    end(process)


@pytest.mark.parametrize(
    "client_cert", ["garbage", " ", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "\xff" * 99]
)
@pytest.mark.windows
def test_an_unreadable_client_cert_is_an_error(world: World, client_cert: str) -> None:
    process = hand_started(world, client_cert)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    for text in (out.decode(), json.loads(err)["@message"]):
        assert "the host's PLUGIN_CLIENT_CERT is not a certificate in PEM" in text
    assert "stacktrace" not in err.decode()


def test_without_auto_mtls_nothing_of_it_is_started(world: World) -> None:
    world.started()
    assert len(world.plugins()) == 1
    look = "{'cryptography', 'goplugin.companion.relay'} & set(sys.modules)"
    code = f"import os, sys, plugin; print('imported:', {look}); os._exit(0)"
    process = world.run(sys.executable, "-c", code, env={**world.env, **HOSTS_VARIABLES})
    assert process.communicate(timeout=PATIENCE) == (b"", b"imported: set()\n")
    maps = Path(f"/proc/{world.plugin().pid}/maps").read_text()
    assert "cryptography" not in maps


@pytest.mark.grpcio_only("pygrpc-native's folder is there too")
def test_nothing_else_listens(world: World) -> None:
    host = probe.start(world, **MTLS)
    listening = [
        connection
        for process in (*world.plugins(), *world.companions())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {(connection.laddr.ip, connection.laddr.port) for connection in listening} == {("127.0.0.1", port_of(host))}
    (folder,) = world.temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.is_socket() for path in folder.iterdir()] == [True]  # no key is left there either
    host.ask("kill")
    assert not folder.exists()


def test_the_key_is_on_disk_only_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    load = tls._contexts

    def look(certificate: str, key: str, **trusted: Any) -> Any:
        seen.append((stat.S_IMODE(os.stat(key).st_mode), "PRIVATE KEY" in Path(key).read_text()))
        return load(certificate, key, **trusted)

    monkeypatch.setattr(tls, "_contexts", look)
    umask = os.umask(0)
    try:
        tls.auto_mtls_contexts(certificate_in(make_certificate(tmp_path, "host")), str(tmp_path))
    finally:
        os.umask(umask)
    assert seen == [(0o600, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["host.pem"]


@pytest.mark.slow
def test_silent_connections_do_not_keep_the_host_out(world: World) -> None:
    host = probe.start(world, **MTLS)
    port = port_of(host)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    begin = time.monotonic()
    try:
        for number in range(20):
            assert probe.do(host, Probe.echo, number) == number
        companion = world.companion()
        before = sum(companion.cpu_times()[:2])
        time.sleep(1)
        assert sum(companion.cpu_times()[:2]) - before < 0.3  # silent connections cost no time
        assert eventually(lambda: sum(map(is_refused, silent)) == 200)
        assert eventually(lambda: len(refusals(host)) == LOGGED)  # the log arrives a little after the close
        assert 9 < time.monotonic() - begin < 20
        assert all("did not finish the TLS handshake" in text for text in refusals(host))
        assert silent[0].recv(1) == b""
    finally:
        for connection in silent:
            connection.close()


def test_a_thousand_connections_at_once(world: World) -> None:
    """The plugin refuses the oldest connections, and goes on serving the host."""
    host = probe.start(world, **MTLS)
    port = port_of(host)
    crowd = []
    try:
        for _ in range(900):
            crowd.append(socket.create_connection(("127.0.0.1", port)))
        assert probe.do(host, Probe.echo, "still here") == "still here"
        assert eventually(lambda: sum(map(is_refused, crowd)) >= 600)
        assert eventually(lambda: len(refusals(host)) == LOGGED)
    finally:
        for connection in crowd:
            connection.close()


def test_what_is_refused_leaves_no_memory_behind(world: World) -> None:
    host = probe.start(world, **MTLS)
    port = port_of(host)
    companion = world.companion()

    def refused(times: int) -> int:
        """The companion's memory after so many refusals."""
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
                connection.sendall(b"\x16\x03\x01\x3e\x80" + bytes(16000))  # the beginning of a ClientHello
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
        rss: int = companion.memory_info().rss
        return rss

    before = refused(100)
    assert refused(400) - before < 10_000_000


@pytest.mark.slow
def test_mutated_hellos(world: World) -> None:
    """The plugin serves none of a thousand mutated hellos, survives all, and serves the host in between."""
    host = probe.start(world, **MTLS)
    port = port_of(host)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello_maker = client_context(None).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello_maker.do_handshake()
    hello = outgoing.read()
    generator = random.Random(20)
    for number in range(1000):
        mutated = bytearray(hello)
        for _ in range(generator.randint(1, 8)):
            kind, place = generator.randrange(3), generator.randrange(len(mutated))
            if kind == 0:
                mutated[place] = generator.randrange(256)
            elif kind == 1:
                del mutated[place : place + generator.randint(1, 20)]
            else:
                mutated[place:place] = generator.randbytes(generator.randint(1, 20))
            mutated = mutated or bytearray(hello)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(mutated)
            connection.shutdown(socket.SHUT_WR)
            try:
                while data := connection.recv(65536):
                    assert b"HTTP" not in data
            except ConnectionError:
                pass
        if number % 100 == 0:
            assert probe.do(host, Probe.echo, number) == number
    assert len(world.companions()) == 1
    assert eventually(lambda: len(refusals(host)) == LOGGED)


@pytest.mark.parametrize("victim", ["plugin", "companion", "host"])
def test_killed_under_load(world: World, victim: str) -> None:
    """After SIGKILL to any one process, the others are gone within 2 s and nothing is left."""
    host = probe.start(world, shell=True, **MTLS)
    for _ in range(4):
        host.begin("mirror", method="/probe.Streams/mirror", repeat=10_000, size=1_000_000)
    time.sleep(0.5)
    plugin = world.plugin()
    companion = world.companion()
    pids = {"plugin": plugin.pid, "companion": companion.pid, "host": host.process.pid}
    os.kill(pids[victim], signal.SIGKILL)
    assert world.gone()
    if victim == "companion":
        assert host.logged("the companion process died", **{"@level": "error"})


def test_sigterm_and_sigint_to_all(world: World) -> None:
    """The companion stays until the plugin's calls are done."""
    host = probe.start(world, **MTLS)
    call = host.begin("call", method="/probe.Probe/sleep", message=b"0.8")
    time.sleep(0.2)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        for process in (*world.plugins(), *world.companions()):
            process.send_signal(signal_number)
    assert call()["message"] == b"null"
    assert world.gone()


@pytest.mark.slow
def test_one_gigabyte_each_way(world: World) -> None:
    host = probe.start(world, **MTLS)
    host.ask("mirror", method="/probe.Streams/mirror", repeat=16, size=64 << 20)
    companion = world.companion()
    assert companion.memory_info().rss < 80 << 20


@pytest.mark.windows
def test_reflection_and_health_are_behind_it(world: World) -> None:
    host = probe.start(world, **MTLS)
    host.ask("ping")
    host.ask("open", stream=1, method="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    host.ask("send", stream=1, message=b"\x3a\x00")  # list_services
    assert b"plugin.GRPCStdio" in host.ask("recv", stream=1)["message"]


def test_broker_refuses_strangers_too(world: World) -> None:
    host = probe.start(world, **MTLS)
    before = {port_of(host)}
    probe.do(host, Probe.accept, 1)
    ports = {
        connection.laddr.port
        for process in (*world.plugins(), *world.companions())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    (port,) = ports - before
    assert not served(port, client_context(None))
    assert not served(port, client_context(make_certificate(world.folder, "stranger")))
    assert eventually(lambda: len(refusals(host)) == 2)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"


@pytest.mark.windows
def test_broker_dials_the_host_alone(world: World) -> None:
    """The plugin does not talk to a server whose certificate has the same names but is not the host's."""
    host = probe.start(world, **MTLS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(world.folder, "impostor"))
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        address = f"127.0.0.1:{impostor.getsockname()[1]}"
        host.ask("open", stream=1, method="/plugin.GRPCBroker/StartStream")
        info = b"\x08\x09\x12\x03tcp\x1a" + bytes([len(address)]) + address.encode()
        host.ask("send", stream=1, message=info)
        call = host.begin("call", method="/probe.Probe/dial", message=b'[9, "secret", 1]')
        plain, _ = impostor.accept()
        with plain, pytest.raises(OSError):
            context.wrap_socket(plain, server_side=True).recv(1)
    with pytest.raises(CallError, match="UNAVAILABLE"):
        call()
    assert eventually(lambda: any("cannot dial" in text and "certificate" in text for text in refusals(host)))


@pytest.fixture
def files(world: World) -> dict[str, Path]:
    names = ("server", "client", "stranger")
    return {name: make_certificate(world.folder, name) for name in names}


@pytest.mark.windows
def test_a_certificate_of_the_plugins_own(world: World, files: dict[str, Path]) -> None:
    """As go-plugin's TLSProvider: the same refusals, and no sixth field in the handshake line."""
    world.env["PROBE_TLS_FILES"] = os.pathsep.join(str(files[name]) for name in ("server", "server", "client"))
    certificate = [str(files["client"])] * 2
    host = probe.start(world, certificate=certificate)
    assert probe.do(host, Probe.echo, "served") == "served"
    port = port_of(host)
    for path in (None, files["stranger"], files["server"]):
        assert not served(port, client_context(path))
    assert served(port, client_context(files["client"]))
    assert eventually(lambda: len(refusals(host)) == 3)
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    host.ask("accept", broker=2)
    assert probe.do(host, Probe.dial, [2, "x", 1]) == "the same"
    assert host.ask("kill")["seconds"] < 1.9


def test_its_handshake_has_no_sixth_field(world: World, files: dict[str, Path]) -> None:
    """Even if the host asks for AutoMTLS: as in Go, the plugin's own certificate takes precedence."""
    tls = os.pathsep.join(str(files[name]) for name in ("server", "server", "client"))
    env = {**world.env, **HOSTS_VARIABLES, "PROBE_COOKIE": "probe", "PROBE_TLS_FILES": tls}
    for extra in ({}, {"PLUGIN_CLIENT_CERT": certificate_in(files["stranger"])}):
        process = world.run(sys.executable, probe.PLUGIN, env={**env, **extra})
        assert line(process).count("|") == 4
        assert end(process)[0] == 0


def test_its_files_may_be_missing(world: World, files: dict[str, Path]) -> None:
    env = {**world.env, **HOSTS_VARIABLES, "PROBE_COOKIE": "probe", "PROBE_TLS_FILES": "missing:missing:missing"}
    process = world.run(sys.executable, probe.PLUGIN, env=env)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    for text in (out.decode(), json.loads(err)["@message"]):
        assert "This plugin cannot use its own certificate: TLSFiles(certificate='missing'" in text
        assert "No such file or directory" in text
    assert "stacktrace" not in err.decode()


def new_folders(before: set[Path]) -> set[Path]:
    return {path for path in set(Path("/tmp").glob("plugin*")) - before if path.is_dir()}


def test_a_long_temporary_folder(world: World) -> None:
    """The plugin puts the socket where its path is short enough, and removes it afterwards."""
    long = world.temporary / ("x" * 100)
    long.mkdir()
    world.env["TMPDIR"] = str(long)
    before = set(Path("/tmp").iterdir())
    host = world.started(**MTLS)
    put(host, "k", b"v")
    host.ask("kill")
    # Other tests may have folders there meanwhile, and remove them too.
    assert eventually(lambda: not [path for path in new_folders(before) if not list(path.glob("*"))])
    long.rmdir()


def test_children_do_not_keep_the_companion(world: World) -> None:
    """A forked child holds no end of the companion's socket pair."""
    host = probe.start(world, **MTLS)
    forked = psutil.Process(probe.do(host, Probe.fork))
    companion = world.companion()
    plugin = world.plugin()
    plugin.kill()
    assert eventually(lambda: not is_alive(companion), 2)
    forked.kill()
