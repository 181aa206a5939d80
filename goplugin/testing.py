"""A host for tests of plugins, in Python: no Go is needed. Mirrors go-plugin's client.go and grpc_client.go.

    with goplugin.testing.start([sys.executable, "plugin.py"], HANDSHAKE) as plugin:
        your_pb2_grpc.YourStub(plugin.channel).Method(your_pb2.Request())
    assert plugin.exit_code == 0

It is for tests. It does not watch over a plugin in use: it neither restarts it nor limits what it may do.
"""

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any, NamedTuple

import grpc
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from goplugin.address import Address
from goplugin.companion import tls
from goplugin.companion.loop import READ, Loop
from goplugin.companion.relay import Relays
from goplugin.environment import Environment
from goplugin.handshake import CORE_PROTOCOL_VERSION, HandshakeConfig
from goplugin.services import host_pb2, host_pb2_grpc
from goplugin.services.broker import Broker
from goplugin.transport import ByCompanion, Plain
from goplugin.workers import Workers

KILL_GRACE = 2.0  # seconds that a plugin has to end by itself after Shutdown, as in client.go

_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_UNRECOGNIZED = (
    "Unrecognized remote plugin message: {!r} (a host says the same): the first line on the plugin's stdout must be the"
    " handshake line, such as 1|1|tcp|127.0.0.1:PORT|grpc"
)


class PluginError(Exception):
    """The plugin did not do what a host expects of it. The text ends with the plugin's log."""


class Handshake(NamedTuple):
    """The handshake line. server_cert: DER, under AutoMTLS; else empty."""

    version: int
    address: Address
    server_cert: bytes


def parse_handshake(line: str) -> Handshake:
    """Parse the line as Start in client.go does. ValueError, with what a host would say, if it is not one."""
    fields = line.strip().split("|")
    if len(fields) < 4:
        raise ValueError(_UNRECOGNIZED.format(line))
    core, version, network, address, protocol, server_cert, *_ = [*fields, "netrpc", "", ""][: max(6, len(fields))]
    if core != str(CORE_PROTOCOL_VERSION):
        raise ValueError(f"Incompatible core API version with plugin. Plugin version: {core}, Core version: 1")
    if not version.isdecimal():
        raise ValueError(f"Error parsing protocol version {version!r}: it must be a number")
    if network not in ("tcp", "unix"):
        raise ValueError(f"Unknown address type: {network}")
    if protocol != "grpc":
        raise ValueError(f"The plugin speaks {protocol!r}; this host speaks grpc alone")
    if server_cert and len(server_cert) <= 50:
        server_cert = ""  # as client.go does, which takes it for something else
    padded = server_cert + "=" * (-len(server_cert) % 4)
    return Handshake(int(version), Address(network, address), base64.b64decode(padded, validate=True))


@contextlib.contextmanager
def start(
    command: Sequence[str | os.PathLike[str]],
    handshake: HandshakeConfig,
    *,
    auto_mtls: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    check_health: bool = True,
) -> "Iterator[Client]":
    """Start a plugin, in any language, and connect to it. At the end of the `with` it is ended as by Kill().

    handshake: the plugin's; the host offers its protocol_versions. env: instead of os.environ.
    timeout: seconds until the handshake line, and for the connection.
    check_health: False for a plugin that has no health service, without which hosts cannot ping it.
    PluginError if the plugin does not start as a host expects. OSError if the command cannot be run.
    """
    client = Client(auto_mtls=auto_mtls)
    try:
        client._start(command, handshake, cwd, os.environ if env is None else env, timeout, check_health)
        yield client
    finally:
        client.kill()


@contextlib.contextmanager
def attach(reattach_config: str, *, timeout: float = 60.0) -> "Iterator[Client]":
    """Connect to a plugin that runs already: with --debug it prints such JSON. The plugin stays at the end."""
    (config,) = json.loads(reattach_config).values()
    client = Client()
    try:
        address = Address(config["Addr"]["Network"], config["Addr"]["String"])
        client._connect(Handshake(config["ProtocolVersion"], address, b""), timeout, check_health=True)
        yield client
    finally:
        client._close()


class Client:
    """A plugin as its host sees it (go-plugin's Client).

    channel: to the plugin. streams: the calls of stdio and broker, which every host keeps open.
    version: the app protocol version that both sides have in common.
    handshake_line: as the plugin printed it. after_handshake: what it wrote to the real stdout after that, as bytes.
    stdout, stderr: what the plugin printed, as bytes, by the stdio service (SyncStdout and SyncStderr).
    log: what it wrote to the real stderr: hclog's records, as dicts, with "@level", "@message" and pairs; other lines
        are records at level debug, as with a host.
    broker: the host's side: `accept` serves what the plugin dials, `dial` reaches what the plugin accepts.
    pid, exit_code: of the process; exit_code is None while it runs, and negative if a signal ended it.
    """

    channel: grpc.Channel
    broker: Broker
    version: int

    def __init__(self, *, auto_mtls: bool = False) -> None:
        self.handshake_line = ""
        self.after_handshake, self.stdout, self.stderr = bytearray(), bytearray(), bytearray()
        self.log: list[dict[str, Any]] = []
        self._certificate = tls.make_certificate("SECP521R1") if auto_mtls else None
        self._process: subprocess.Popen[bytes] | None = None
        self._first_line = queue.SimpleQueue[bytes]()
        self._readers: list[threading.Thread] = []
        self.streams: list[Any] = []
        self._connected = False
        self._relays: _RelayThread | None = None
        self._workers: Workers | None = None
        self._folder = tempfile.mkdtemp(prefix="host")  # for sockets

    @property
    def pid(self) -> int:
        """The pid of the process that `start` started."""
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        """See above."""
        return self._process.poll() if self._process else None

    def _start(
        self,
        command: Sequence[str | os.PathLike[str]],
        handshake: HandshakeConfig,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str],
        timeout: float,
        check_health: bool,
    ) -> None:
        """See goplugin.testing.start."""
        handshake.check()
        variables = {
            handshake.magic_cookie_key: handshake.magic_cookie_value,
            "PLUGIN_MIN_PORT": "10000",
            "PLUGIN_MAX_PORT": "25000",
            "PLUGIN_PROTOCOL_VERSIONS": ",".join(map(str, handshake.protocol_versions)),
        }
        if self._certificate:
            variables["PLUGIN_CLIENT_CERT"] = self._certificate[0].decode()
        self._process = subprocess.Popen(
            [os.fspath(part) for part in command],
            cwd=cwd,
            env={**env, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._in_thread(self._read_stdout, self._process.stdout)
        self._in_thread(self._read_stderr, self._process.stderr)
        try:
            line = self._first_line.get(timeout=timeout)
        except queue.Empty:
            raise self._error(f"timeout while waiting for plugin to start: no line in {timeout:g} s") from None
        if not line:
            raise self._error("plugin exited before we could connect: it closed its stdout without a line")
        self.handshake_line = line.decode(errors="replace").strip()
        try:
            parsed = parse_handshake(self.handshake_line)
        except ValueError as error:
            raise self._error(str(error)) from None
        if parsed.version not in handshake.protocol_versions:
            raise self._error(
                f"incompatible API version with plugin. Plugin version: {parsed.version},"
                f" Client versions: {list(handshake.protocol_versions)}"
            )
        if self._certificate and not parsed.server_cert:
            raise self._error("the host asked for AutoMTLS, and the handshake line has no certificate")
        self._connect(parsed, timeout, check_health)

    def _connect(self, handshake: Handshake, timeout: float, check_health: bool) -> None:
        """Connect, check the plugin's health, and open the streams that every host opens."""
        self.version = handshake.version
        environment = Environment(socket_dir=self._folder)  # on the host's side, the broker has Unix sockets
        transport: Plain | ByCompanion = Plain(environment, str)
        if self._certificate:
            try:
                contexts = tls.contexts_for(handshake.server_cert, *self._certificate, self._folder)
            except ssl.SSLError as error:
                raise self._error(f"the handshake line's sixth field is not a certificate: {error}") from None
            for context in (contexts.server, contexts.client):
                context.set_ciphers("DEFAULT:@SECLEVEL=1")  # RSA keys of 1,024 bits, which Go accepts too
            self._relays = _RelayThread(contexts, environment, self._folder)
            transport = ByCompanion(self._relays)
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0))
        self.channel = transport.dial(handshake.address, options, grpc.insecure_channel)
        self._workers = Workers(2, 64)
        self.broker = Broker(transport, {"thread_pool": self._workers, "options": _OPTIONS, "interceptors": ()})
        self._connected = True
        try:
            grpc.channel_ready_future(self.channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise self._error(f"cannot connect to {handshake.address.address} within {timeout:g} s") from None
        if check_health:
            self._check_health(timeout)
        stdio: Any = host_pb2_grpc.GRPCStdioStub(self.channel).StreamStdio(empty_pb2.Empty())
        self._in_thread(self._read_stdio, stdio)
        theirs = queue.SimpleQueue[Any]()  # their half of the stream, which is there once ours is
        ours = self.broker.StartStream(_later(theirs), None)  # type: ignore[arg-type]
        infos: Any = host_pb2_grpc.GRPCBrokerStub(self.channel).StartStream(ours)
        theirs.put(infos)
        self.streams = [stdio, infos]

    def kill(self, timeout: float = 10.0) -> None:
        """End the plugin as Kill in client.go does: Shutdown, 2 s, then SIGKILL. timeout: for Shutdown's answer.

        go-plugin has no such timeout, and would wait. A second call does nothing.
        """
        if self._process and self._connected and self.exit_code is None:
            with contextlib.suppress(grpc.RpcError):  # it has ended
                host_pb2_grpc.GRPCControllerStub(self.channel).Shutdown(host_pb2.Empty(), timeout=timeout)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_GRACE)
        if self._process and self.exit_code is None:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        """Let go of a plugin that has ended, or that was not started by us. A second call does nothing."""
        if self._process:
            self._process.wait()
        for stream in self.streams:
            stream.cancel()
        for reader in self._readers:
            reader.join(KILL_GRACE)  # longer only if a child of the plugin's holds the pipes
        if self._process and not any(reader.is_alive() for reader in self._readers):
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe:
                    pipe.close()
        if self._connected:
            self._connected = False
            self.broker.close()
            self.channel.close()
        if self._relays:
            self._relays.close()
        if self._workers:
            self._workers.shutdown(wait=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_health(self, timeout: float) -> None:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            health = stub.Check(health_pb2.HealthCheckRequest(service="plugin"), timeout=timeout)
        except grpc.RpcError as error:
            said: Any = error
            reason = f"{said.code().name}: {said.details()}"
            raise self._error(f'the health service does not answer for "plugin": {reason}') from None
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            raise self._error('the health service says that "plugin" is not SERVING')

    def _in_thread(self, read: Callable[[Any], None], source: Any) -> None:
        self._readers.append(threading.Thread(target=read, args=(source,), daemon=True))
        self._readers[-1].start()

    def _read_stdout(self, pipe: IO[bytes]) -> None:
        self._first_line.put(pipe.readline(64 * 1024))
        self.after_handshake += pipe.read()

    def _read_stderr(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self.log.append(_record(line))

    def _read_stdio(self, messages: Any) -> None:
        with contextlib.suppress(grpc.RpcError):  # the plugin has ended, or has no such service
            for message in messages:
                is_stdout = message.channel == host_pb2.StdioData.Channel.STDOUT
                (self.stdout if is_stdout else self.stderr).extend(message.data)

    def _error(self, text: str) -> PluginError:
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may be about to say more
                self._process.wait(1)
                self._readers[1].join(1)
        log = "".join(f"\n  {record.get('@level', '')}: {_text(record)}" for record in self.log)
        ended = "" if self.exit_code is None else f" The plugin has ended, exit code {self.exit_code}."
        return PluginError(f"{text}.{ended}\nIts log:{log or ' (empty)'}")


def _later(source: "queue.SimpleQueue[Iterator[Any]]") -> Iterator[Any]:
    yield from source.get()


def _record(line: bytes) -> dict[str, Any]:
    """A line of the plugin's stderr as the host logs it (logStderr in client.go)."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return {"@level": "debug", "@message": line.decode(errors="replace").rstrip()}


def _text(record: dict[str, Any]) -> str:
    return "\n    ".join(f"{record.get('@message', record)}\n{record.get('stacktrace', '')}".strip().splitlines())


class _RelayThread:
    """TLS under AutoMTLS as the companion does it, in a thread: a test has threads already, and must not fork.

    It has those methods of Companion that ByCompanion uses.
    """

    folder = ""  # the caller's, who removes it

    def __init__(self, contexts: tls.Contexts, environment: Environment, folder: str) -> None:
        self._loop, self._folder, self._paths = Loop(), folder, itertools.count()
        self._relays = Relays(self._loop, contexts, environment, self._path, None)
        self._commands: dict[str, Callable[..., Any]] = {
            "path": self._path,
            "listen": self._relays.listen,
            "dial": self._relays.dial,
            "close": self._relays.close,
        }
        self._asked = queue.SimpleQueue[tuple[Future[Any], str, tuple[str, ...]]]()
        self._wake, self._woken = socket.socketpair()
        self._loop.watch(self._woken, READ, self._run_command)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="goplugin-relays", daemon=True)
        self._thread.start()

    def server_cert(self) -> str:
        """Return "": a host prints no handshake line."""
        return ""

    def ask(self, command: str, *arguments: str) -> Any:
        """Give a command and return the reply, or raise what it raises."""
        return self._give(command, *arguments).result()

    def tell(self, command: str, *arguments: str) -> None:
        """Give a command that has no reply."""
        with contextlib.suppress(OSError):  # closed
            self._give(command, *arguments)

    def close(self) -> None:
        """End the connections, which their other ends have left, and the thread."""
        if not self._closed:
            self._closed = True
            self._wake.close()
            self._thread.join()

    def _give(self, command: str, *arguments: str) -> "Future[Any]":
        future: Future[Any] = Future()
        self._asked.put((future, command, arguments))
        self._wake.sendall(b".")
        return future

    def _run(self) -> None:
        while not self._closed:
            self._loop.run_once(self._relays.expire())
        self._loop.forget(self._woken)
        self._woken.close()
        self._relays.close_all()
        end = time.monotonic() + 1
        while self._loop.is_watching() and time.monotonic() < end:  # connections, which both other ends have left
            self._loop.run_once(0.1)

    def _run_command(self, events: int) -> None:
        if not self._woken.recv(1):
            return  # close
        future, command, arguments = self._asked.get()
        try:
            future.set_result(self._commands[command](*arguments))
        except (OSError, ValueError) as error:
            future.set_exception(error)

    def _path(self) -> str:
        return os.path.join(self._folder, str(next(self._paths)))
