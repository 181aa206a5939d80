"""goplugin.testing, the host in Python, with the probe plugin and with go-plugin's own Go plugin."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import probe
import psutil
import pytest
from actions import children, handlers
from harness import ROOT, eventually
from probe_plugin import Probe

import goplugin
import kv_pb2
import kv_pb2_grpc
from goplugin.companion import tls
from goplugin.testing import Client, PluginError, attach, parse_handshake, start
from plugin import HANDSHAKE

PROBE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="PROBE_COOKIE", magic_cookie_value="probe")
PROBE_PLUGIN = [sys.executable, str(probe.PLUGIN)]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
AUTO_MTLS = pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test leaves no process, thread, file descriptor or folder behind. Other tests run at the same time."""
    folder = tempfile.TemporaryDirectory(prefix="t")  # not pytest's: the path of a socket has at most 107 bytes
    monkeypatch.setattr(tempfile, "tempdir", folder.name)
    monkeypatch.setenv("TMPDIR", folder.name)

    def left() -> tuple[Any, ...]:
        threads = {thread.name for thread in threading.enumerate()} - {"broker-timers"}
        sockets = {name for name in os.listdir(folder.name) if name.startswith("host")}
        return len(psutil.Process().children(recursive=True)), threads, sockets

    def nothing_more() -> bool:
        return all(now <= then for now, then in zip(left(), before, strict=True))

    def descriptors() -> int:
        return psutil.Process().num_fds() if sys.platform != "win32" else 0

    before, files = left(), descriptors()
    yield
    assert eventually(nothing_more), left()
    assert descriptors() <= files + 4  # grpc keeps a few
    folder.cleanup()


def do(client: Client, method: Callable[..., Any], argument: Any = None) -> Any:
    call: Any = client.channel.unary_unary(f"/probe.Probe/{method.__name__}")
    return json.loads(call(probe.message(argument), timeout=30))


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}"]


@AUTO_MTLS
@pytest.mark.windows
def test_both_ways_of_the_broker(auto_mtls: bool) -> None:
    with start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls) as client:
        served = client.broker.next_id()
        with client.broker.accept(served, lambda server: server.add_generic_rpc_handlers([Echo()])):
            assert do(client, Probe.dial, [served, "x", 1]) == "the same"
        do(client, Probe.accept, 77)
        with client.broker.dial(77) as channel:
            call: Any = channel.unary_unary("/probe.Probe/echo")
            assert json.loads(call(b'["x"]', timeout=10)) == ["x"]
    assert client.exit_code == 0


@AUTO_MTLS
@pytest.mark.windows
def test_what_it_prints_and_logs(auto_mtls: bool) -> None:
    with start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls) as client:
        do(client, Probe.print, ["stdout", "to stdout, wörld\n", 1, 1])
        do(client, Probe.print, ["stderr", "to stderr", 1, 1])
        call: Any = client.channel.unary_unary(probe.method(children.echo_to_stderr))
        call(probe.action_message(children.echo_to_stderr, "a line of a child"), timeout=30)
    assert (bytes(client.stdout), bytes(client.stderr)) == ("to stdout, wörld\n".encode(), b"to stderr")
    assert {"@level": "debug", "@message": "a line of a child"} in client.log
    assert client.after_handshake == b""


@AUTO_MTLS
def test_a_plugin_in_go(example: Callable[[str], Path], tmp_path: Path, auto_mtls: bool) -> None:
    with start([example("grpc/plugin-go-grpc")], HANDSHAKE, auto_mtls=auto_mtls, cwd=tmp_path) as client:
        kv = kv_pb2_grpc.KVStub(client.channel)
        kv.Put(kv_pb2.PutRequest(key="hello", value=b"world"))
        assert kv.Get(kv_pb2.GetRequest(key="hello")).value == b"world\n\nWritten from plugin-go-grpc"
    assert client.exit_code == 0
    assert client.handshake_line.startswith("1|1|unix|")


@pytest.mark.windows
def test_a_plugin_that_runs_already(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "plugin.py"), "--debug"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        with attach(process.stdout.readline().decode()) as client:
            kv_pb2_grpc.KVStub(client.channel).Put(kv_pb2.PutRequest(key="a", value=b"b"))
        time.sleep(0.2)
        assert process.poll() is None
        process.terminate()
    assert (tmp_path / "kv_a").exists()


@pytest.mark.windows
def test_a_plugin_that_has_ended_cannot_be_attached_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = {"Protocol": "grpc", "ProtocolVersion": 1, "Pid": 1, "Addr": {"Network": "tcp", "String": address}}
    with pytest.raises(PluginError, match="Reattachment process not found: nobody listens at 127.0.0.1"):
        attach(json.dumps({"x": config}))


@pytest.mark.parametrize(
    ("text", "error"),
    {
        "print('hello')": "Unrecognized remote plugin message: 'hello'",
        "import goplugin\nimport no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
        "pass": "plugin exited before we could connect",
        "print('2|1|tcp|127.0.0.1:1|grpc')": "Incompatible core API version with plugin",
        "print('1|9|tcp|127.0.0.1:1|grpc')": "incompatible API version with plugin",
        "print('1|1|tcp|127.0.0.1:1|netrpc')": "speaks 'netrpc'",
        "print('1|1|udp|127.0.0.1:1|grpc')": "Unknown address type: udp",
        "print('1|1|tcp|127.0.0.1:1|grpc', flush=True); import time; time.sleep(60)": "cannot connect to 127.0.0.1:1",
    }.items(),
)
@pytest.mark.windows
def test_a_plugin_that_does_not_start(text: str, error: str) -> None:
    says = "sys.stderr.write('its last words\\n'); sys.stderr.flush()\n"
    with pytest.raises(PluginError) as raised:
        start(script(says + text), HANDSHAKE, timeout=1 if "sleep" in text else 30)
    assert error in str(raised.value)
    assert "its last words" in str(raised.value)


ENDS = """
import goplugin.aio
import logging, os
from grpc_health.v1 import health

def end(*arguments):
    logging.error("its last words")
    os._exit(7)
"""


@AUTO_MTLS
@pytest.mark.parametrize("when", ["connect", "health"])
@pytest.mark.parametrize("file", ["plugin.py", "examples/asyncio/plugin.py"], ids=["threads", "asyncio"])
@pytest.mark.windows
def test_the_end_of_the_process_ends_the_wait(file: str, when: str, auto_mtls: bool) -> None:
    """The process ends before the host has connected, or at the host's first call."""
    text = ENDS + (ROOT / file).read_text(encoding="utf-8")
    if when == "connect":
        text, changed = re.subn(r"(?:await )?plugin\.wait\(\)", "end()", text)
    else:
        text, changed = re.subn(r"(health_servicer = (\S*)\(\))", r"\2.Check = end; \1", text)
    assert changed == 1
    began = time.monotonic()
    with pytest.raises(PluginError, match="The plugin has ended, exit code 7") as raised:
        start(script(text), HANDSHAKE, auto_mtls=auto_mtls, timeout=60)
    assert time.monotonic() - began < 30
    assert raised.value.exit_code == 7
    assert "its last words" in str(raised.value)


# This plugin ends, but its child keeps open what the host waits for: its stdout and its listening socket.
LEAVES_A_CHILD = """
import socket, subprocess
listener = socket.create_server(("127.0.0.1", 0))
if LINE:
    print(f"1|1|tcp|127.0.0.1:{listener.getsockname()[1]}|grpc", flush=True)
child = subprocess.Popen(["sleep", "60"], pass_fds=[listener.fileno()])
open(PID, "w").write(str(child.pid))
sys.stderr.write("its last words\\n")
sys.exit(7)
"""


@pytest.mark.parametrize("line", [False, True], ids=["before the line", "after it"])
def test_a_child_does_not_prolong_the_wait(line: bool, tmp_path: Path) -> None:
    text = LEAVES_A_CHILD.replace("LINE", str(line)).replace("PID", repr(str(tmp_path / "pid")))
    began = time.monotonic()
    try:
        with pytest.raises(PluginError, match="plugin exited before we could connect") as raised:
            start(script(text), HANDSHAKE, timeout=60)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert time.monotonic() - began < 30
    assert "exit code 7" in str(raised.value)
    assert "its last words" in str(raised.value)


@AUTO_MTLS
@pytest.mark.windows
def test_the_end_of_the_process_ends_calls_and_dials(auto_mtls: bool) -> None:
    with start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls) as client:
        threading.Timer(0.5, psutil.Process(client.pid).kill).start()
        with pytest.raises(grpc.RpcError) as raised:
            do(client, Probe.sleep, 60)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(RuntimeError, match="the plugin is leaving"):
            client.broker.dial(77)


@AUTO_MTLS
@pytest.mark.windows
def test_without_with(auto_mtls: bool) -> None:
    client = start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls)
    assert do(client, Probe.echo, "x") == "x"
    client.kill()
    assert client.exit_code == 0


def test_a_plugin_that_nobody_ends_ends_with_its_host(example: Callable[[str], Path], tmp_path: Path) -> None:
    """The plugin is a Go plugin, which would not end by itself."""
    host = f"""
import os, goplugin.testing
config = goplugin.HandshakeConfig([1], "BASIC_PLUGIN", "hello")
client = goplugin.testing.start([{str(example("grpc/plugin-go-grpc"))!r}], config)
if os.fork() == 0:
    sys.exit()  # a child of the host is not the host
os.wait()
print(client.pid, client.exit_code)
"""
    run = subprocess.run(script(host), cwd=tmp_path, check=True, capture_output=True, text=True)
    pid, exit_code = run.stdout.split()
    assert exit_code == "None"
    assert eventually(lambda: not psutil.pid_exists(int(pid)))


@AUTO_MTLS
@pytest.mark.windows
def test_metadata_of_a_mebibyte(auto_mtls: bool) -> None:
    """Go accepts 16 MiB. Metadata above the limit would fail with RESOURCE_EXHAUSTED."""
    with start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls) as client:
        call: Any = client.channel.unary_unary(probe.method(handlers.send_metadata_back))
        message = probe.action_message(handlers.send_metadata_back)
        answer = call.with_call(message, metadata=[("there", "x" * 2**20)], timeout=60)[1]
        assert ("back", "x" * 2**20) in answer.trailing_metadata()


def test_a_plugin_that_says_nothing() -> None:
    with pytest.raises(PluginError, match="timeout while waiting for plugin to start"):
        start(script("import time; time.sleep(60)"), HANDSHAKE, timeout=0.5)


@pytest.mark.windows
def test_auto_mtls_needs_a_certificate_in_the_line() -> None:
    with pytest.raises(PluginError, match="no certificate"):
        start(script("print('1|1|tcp|127.0.0.1:1|grpc')"), HANDSHAKE, auto_mtls=True)


def test_a_plugin_whose_certificate_is_another_one() -> None:
    stranger = tls.for_handshake(tls.make_certificate()[0])
    swap = f"""
import subprocess
plugin = subprocess.Popen([sys.executable, {str(ROOT / "plugin.py")!r}], stdout=subprocess.PIPE, text=True)
print("|".join([*plugin.stdout.readline().split("|")[:5], {stranger!r}]), flush=True)
plugin.wait()
"""
    with pytest.raises(PluginError, match="cannot connect to"):
        start(script(swap), HANDSHAKE, auto_mtls=True, timeout=3)


def test_a_certificate_that_is_none() -> None:
    with pytest.raises(PluginError, match="is not a certificate"):
        start(script(f"print('1|1|tcp|127.0.0.1:1|grpc|{'A' * 60}')"), HANDSHAKE, auto_mtls=True)


@pytest.mark.windows
def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start([tmp_path / "nothing"], HANDSHAKE)


@pytest.mark.windows
def test_a_plugin_that_does_not_leave_is_killed() -> None:
    with start(PROBE_PLUGIN, PROBE, env=ENV) as client:
        psutil.Process(client.pid).suspend()
        began = time.monotonic()
        client.kill(timeout=0.5)
        assert 2 < time.monotonic() - began < 10
    assert client.killed
    assert client.exit_code == (1 if sys.platform == "win32" else -signal.SIGKILL)


@pytest.mark.windows
@pytest.mark.windows
@AUTO_MTLS
def test_kill_disconnects_as_in_go(auto_mtls: bool) -> None:
    """kill() disconnects, so a stream that waits for the end of its call does not delay the plugin."""
    with start(PROBE_PLUGIN, PROBE, env=ENV, auto_mtls=auto_mtls) as client:
        hold: Any = client.channel.unary_stream("/probe.Streams/hold")
        stream = hold(b"")
        assert next(stream) == b"open"
    assert client.exit_code == 0
    assert not [record for record in client.log if record["@level"] == "warn"]


def test_versions_are_negotiated() -> None:
    both = goplugin.HandshakeConfig([6, 1], "BASIC_PLUGIN", "hello")
    with start([sys.executable, ROOT / "plugin.py"], both) as client:
        assert client.version == 1


def test_the_line_of_an_old_plugin() -> None:
    assert parse_handshake("1|3|unix|/tmp/socket|grpc\n")[:2] == (3, ("unix", "/tmp/socket"))
    with pytest.raises(ValueError, match="netrpc"):
        parse_handshake("1|3|unix|/tmp/socket")
