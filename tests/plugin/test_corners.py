"""Corner cases: odd hosts, environments and resolvers, and objects that print when they are collected."""

import contextlib
import errno
import platform
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import probe
import pytest
from actions import dials, on_asyncio, own_process
from by_hand import end, line, run
from certificates import HTTP2, certificate_in, client_context, make_certificate
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CallError, Host, World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe

import goplugin

LEAKED = {  # variables that a host sets for its plugin; every program that the plugin starts inherits them
    "BASIC_PLUGIN": "hello",
    "PLUGIN_MIN_PORT": "10000",
    "PLUGIN_MAX_PORT": "25000",
    "PLUGIN_PROTOCOL_VERSIONS": "1",
}


def is_served(handshake_line: str) -> bool:
    """Whether the plugin answers a plain caller (no TLS, no multiplexing) at the address in the line."""
    with grpc.insecure_channel(handshake_line.split("|")[3]) as channel:
        request = health_pb2.HealthCheckRequest(service="plugin")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(request, timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.plain_only("the test plays the host")
def test_a_host_that_sets_the_cookie_alone(world: World) -> None:
    """The plugin serves such a host, and does not complain about its imports."""
    process = world.run(sys.executable, world.kv_plugin, env={**world.env, "BASIC_PLUGIN": "hello"})
    assert is_served(line(process))
    code, out, err = end(process)
    assert (code, out) == (0, "")
    assert "grpc was imported before goplugin" not in err


def test_a_host_that_passes_debug(world: World) -> None:
    host = world.started(cmd=[sys.executable, str(world.kv_plugin), "--debug"])
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    assert not host.logged_now("grpc was imported before goplugin")
    assert host.ask("kill")["seconds"] < 1.9


def test_garbage_that_prints_when_it_is_collected(world: World) -> None:
    """A garbage collection can start in the middle of a print."""
    host = probe.start(world)
    try:
        probe.act(host, own_process.print_while_garbage_prints, 50_000, seconds=15)
    except CallError:
        world.plugin().kill()  # otherwise the host would wait for it
        raise
    assert eventually(lambda: b"49999\n" in host.ask("stdio")["stdout"], 5)
    out = host.ask("stdio")["stdout"]
    assert out.count(b"kept ") == 50_000
    assert out.count(b"collected") > 1000


IMPORTS = ["import goplugin.testing", "import goplugin\nimport goplugin.testing", "from goplugin.testing import start"]

A_TEST_OF_A_PLUGIN = """
import os, sys, time
os.write(1, b"to descriptor 1\\n")
os.write(2, b"to descriptor 2\\n")
print("printed")
print("printed as an error", file=sys.stderr)
import goplugin
HANDSHAKE = goplugin.HandshakeConfig([1], "BASIC_PLUGIN", "hello")
with goplugin.testing.start([sys.executable, PLUGIN], HANDSHAKE, auto_mtls=AUTO_MTLS) as plugin:
    print("version", plugin.version)
try:
    print("exit code", plugin.exit_code, flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("imports", IMPORTS)
def test_goplugin_testing_leaves_its_process_alone(world: World, imports: str) -> None:
    """A host further up may have left its variables in the environment. The process that imports it is not a plugin."""
    script = world.folder / "tests_a_plugin.py"
    code = A_TEST_OF_A_PLUGIN.replace("AUTO_MTLS", str(world.auto_mtls)).replace(
        "PLUGIN]", f"{str(world.kv_plugin)!r}]"
    )
    script.write_text(f"{imports}\n{code}")
    process = world.run(sys.executable, script, env={**world.env, **LEAKED})
    assert process.stdout
    out = b""
    while not out.endswith(b"exit code 0\n"):
        out += (read := process.stdout.readline())
        assert read, process.communicate()[1].decode()
    assert not world.companions()
    time.sleep(0.3)  # until it is in sleep(): a finalizer would swallow KeyboardInterrupt
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=5)
    assert out + rest == b"to descriptor 1\nprinted\nversion 1\nexit code 0\ninterrupted\n"
    assert err == b"to descriptor 2\nprinted as an error\n"
    assert process.returncode == 0


@pytest.mark.plain_only("the test needs no host")
@pytest.mark.threads_only("the test starts no plugin")
def test_check_leaves_its_process_alone(world: World) -> None:
    process = world.run(sys.executable, "-m", "goplugin", "check", "--help", env={**world.env, **LEAKED})
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"usage: ")
    assert not world.companions()


@pytest.mark.plain_only("the test plays the host")
@pytest.mark.parametrize("value", ["false", "False", "FALSE", "0", "f", "F", "", "no", "2", "tRUE"])
def test_multiplexing_is_off_as_go_parses_it(world: World, value: str) -> None:
    """As strconv.ParseBool does; a value that it does not know counts as false."""
    process = run(world, script=world.kv_plugin, PLUGIN_MULTIPLEX_GRPC=value)
    assert is_served(line(process))
    assert end(process)[0] == 0


@pytest.mark.plain_only("the test plays the host")
@pytest.mark.parametrize("value", ["true", "True", "TRUE", "1", "t", "T"])
def test_multiplexing_is_on_as_go_parses_it(world: World, value: str) -> None:
    process = run(world, script=world.kv_plugin, PLUGIN_MULTIPLEX_GRPC=value)
    handshake = line(process)
    assert handshake.endswith("|true\n")
    assert not is_served(handshake)
    process.send_signal(signal.SIGTERM)  # in case it did not leave with its caller
    process.communicate(timeout=10)


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_workers_outlive_what_a_callback_raises(fails: bool) -> None:
    """Even SystemExit: the thread lives on, or the pool notices its end."""
    pool = goplugin.Workers(2, 2)

    def leave(future: Future[Any]) -> None:
        raise SystemExit(3)

    def work() -> None:
        assert begun.result(3)
        if fails:
            raise ValueError

    try:
        for _ in range(4):
            begun: Future[bool] = Future()
            done = pool.submit(work)
            done.add_done_callback(leave)
            begun.set_result(True)
            assert isinstance(done.exception(3), ValueError if fails else type(None))
        assert pool.drain(2)
        assert [pool.submit(abs, -number).result(5) for number in range(8)] == list(range(8))
        assert pool.drain(2)
    finally:
        pool.shutdown(wait=False)


@pytest.mark.threads_only("a handler for threads")
@pytest.mark.grpcio_only("pygrpc-native's folder stays behind")
def test_dial_raises_what_its_docstring_names(world: World) -> None:
    """Even when the companion, which makes the connection, is gone."""
    host = probe.start(world, auto_mtls=True)
    host.ask("accept", broker=1)
    time.sleep(0.2)  # its address arrives
    with pytest.raises(CallError):
        probe.act(host, dials.dial_without_the_companion, 1, world.companion().pid, seconds=10)
    dialled = world.folder / "dialled"
    assert eventually(dialled.exists, 5)
    assert dialled.read_text().endswith(" is named")


MIB = 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries manage memory differently")
@pytest.mark.plain_only("the companion does not keep messages")
@pytest.mark.grpcio_only("pygrpc-native has its own allocator")
@pytest.mark.slow
def test_the_memory_of_many_large_messages_is_given_back(world: World) -> None:
    host = probe.start(world)
    plugin = world.plugin()
    host.ask("call", method="/probe.Streams/mirror", message=b"x" * (64 * MIB), repeat=16)
    assert eventually(lambda: plugin.memory_info().rss < 400 * MIB, 15), plugin.memory_info().rss // MIB


@pytest.mark.parametrize("does", on_asyncio.CONNECTS)
def test_the_event_loop_never_waits_for_the_companion(world: World, does: str) -> None:
    """Other handlers go on while a slow companion makes a connection."""
    if not world.on_asyncio:
        world.on_asyncio = True
        world.env["PROBE_ON_ASYNCIO"] = "yes"
    host = probe.start(world, auto_mtls=True)
    if does == "dial":
        host.ask("accept", broker=1)
        time.sleep(0.2)  # its address arrives
    companion = world.companion().pid
    action = on_asyncio.connect_while_the_companion_is_stopped
    assert probe.act(host, action, does, companion, seconds=20) < 1


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def name_address(host: Host, service_id: int, address: str) -> None:
    """Have the host announce, on another broker stream, that it serves the id at the address."""
    host.ask("open", stream=service_id, method="/plugin.GRPCBroker/StartStream")
    text = address.encode()
    info = b"\x08" + varint(service_id) + b"\x12\x03tcp\x1a" + varint(len(text)) + text
    host.ask("send", stream=service_id, message=info)


@contextlib.contextmanager
def forwarder(path: Path) -> Iterator[int]:
    """Forward one connection from a port of localhost to the Unix socket; yields the port."""

    def forward() -> None:
        with contextlib.suppress(OSError):
            caller = listener.accept()[0]
            with caller, socket.socket(socket.AF_UNIX) as target:
                target.connect(str(path))
                other = {caller: target, target: caller}
                while True:
                    for ready in select.select([caller, target], [], [])[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        other[ready].sendall(data)

    with socket.create_server(("localhost", 0)) as listener:
        thread = threading.Thread(target=forward)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_dial_where_the_host_names_a_host_name(world: World) -> None:
    host = probe.start(world, auto_mtls=True, multiplex=False)
    host.ask("accept", broker=5)

    def sockets() -> list[Path]:
        return [path for path in world.temporary.iterdir() if path.is_socket()]

    assert eventually(sockets)
    with forwarder(sockets()[0]) as port:
        name_address(host, 9, f"localhost:{port}")
        assert probe.do(host, Probe.dial, [9, "x", 1000]) == "the same"
        host.ask("kill")


@contextlib.contextmanager
def silent_nameserver() -> Iterator[str]:
    """Run a nameserver that never answers; yields its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        for last in range(2, 250):
            with contextlib.suppress(OSError):
                server.bind((f"127.77.0.{last}", 53))
                break
        else:
            pytest.skip("port 53 is not free for a nameserver, or this user may not listen on it")
        yield server.getsockname()[0]


def test_a_name_that_is_not_resolved_delays_nobody(world: World) -> None:
    """Under AutoMTLS, where the process that resolves the name also carries all calls."""
    plugin = shlex.join([sys.executable, str(probe.PLUGIN)])
    with silent_nameserver() as nameserver:
        resolv = world.folder / "resolv.conf"
        resolv.write_text(f"nameserver {nameserver}\noptions timeout:4 attempts:1\n")
        mount = f"mount --bind {shlex.quote(str(resolv))} /etc/resolv.conf"
        if world.run("unshare", "--mount", "sh", "-c", mount).wait(10):
            pytest.skip("this user may not make namespaces")
        command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {plugin}"]
        host = probe.start(world, cmd=command, auto_mtls=True, multiplex=False)
        name_address(host, 9, "name.invalid:1234")
        call = host.begin("call", method="/probe.Probe/dial", message=b'[9, "x", 1]')
        time.sleep(0.3)  # by now it is resolving the name
        begin = time.monotonic()
        for number in range(5):
            assert probe.do(host, Probe.echo, number, seconds=10) == number
        assert time.monotonic() - begin < 2
        with pytest.raises(CallError, match="cannot dial id 9: .*name resolution"):
            call()
        assert host.ask("kill")["seconds"] < 4


FAILS_FOR_A_CALLER = """
import os, socket
accept, setsockopt = socket.socket.accept, socket.socket.setsockopt
def failing_accept(self):
    accepted = accept(self)
    if FUNCTION == "accept" and os.path.exists("fail"):
        accepted[0].close()
        raise OSError(ERROR, os.strerror(ERROR))
    return accepted
def failing_setsockopt(self, level, *arguments):
    if FUNCTION == "setsockopt" and level == socket.IPPROTO_TCP and os.path.exists("fail"):
        raise OSError(ERROR, os.strerror(ERROR))
    return setsockopt(self, level, *arguments)
socket.socket.accept, socket.socket.setsockopt = failing_accept, failing_setsockopt
import plugin
plugin.main()
"""


@pytest.mark.plain_only("the test plays the host, with AutoMTLS")
@pytest.mark.threads_only("the failure is in the companion")
@pytest.mark.parametrize(
    ("function", "error"),
    [("accept", errno.EPROTO), ("accept", errno.EHOSTUNREACH), ("setsockopt", errno.EINVAL)],
    ids=["accept as on Linux", "accept of an unreachable caller", "setsockopt as on macOS"],
)
def test_a_connection_that_fails_is_not_anothers_fault(world: World, tmp_path: Path, function: str, error: int) -> None:
    """accept() and setsockopt() can fail for a caller that has left. Other callers finish their handshakes."""
    script = world.folder / "fails.py"
    script.write_text(FAILS_FOR_A_CALLER.replace("FUNCTION", repr(function)).replace("ERROR", str(error)))
    path = make_certificate(tmp_path, "host")
    process = run(world, script=script, PLUGIN_CLIENT_CERT=certificate_in(path))
    address = ("127.0.0.1", int(line(process).split("|")[3].rpartition(":")[2]))
    with socket.create_connection(address, timeout=10) as innocent:
        connection = client_context(path).wrap_socket(innocent, do_handshake_on_connect=False)
        time.sleep(0.2)  # until the companion has accepted it
        (world.folder / "fail").touch()
        for _ in range(3):
            with socket.create_connection(address, timeout=0.3) as stranger, contextlib.suppress(OSError):
                stranger.recv(1)
        (world.folder / "fail").unlink()
        connection.do_handshake()
        connection.sendall(HTTP2)
        assert connection.recv(1)
        connection.close()
    assert end(process)[0] == 0
