"""goplugin.testing.Client: a host that starts a plugin, or attaches to one, and ends it."""

import atexit
import contextlib
import json
import os
import queue
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any

import grpc
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from goplugin.companion import tls
from goplugin.environment import Environment
from goplugin.handshake import HandshakeConfig
from goplugin.services import host_pb2, host_pb2_grpc
from goplugin.services.broker import Broker
from goplugin.testing.line import Handshake, parse_handshake
from goplugin.testing.tls_thread import TLSThread
from goplugin.transport import OPTIONS, ByCompanion, Plain
from goplugin.workers import Workers

KILL_GRACE = 2.0  # seconds for a plugin to end by itself after Shutdown, as in client.go


class PluginError(Exception):
    """The plugin did not do what a host expects. The text ends with the plugin's log.

    exit_code: the process's; None if it runs.
    """

    exit_code: int | None = None


class Client(contextlib.AbstractContextManager["Client"]):
    """A plugin as its host sees it (go-plugin's Client). The end of a `with` calls `kill`.

    channel: to the plugin. streams: the calls of stdio and broker, which every host keeps open.
    version: the app protocol version that both sides agreed on.
    handshake_line: as the plugin printed it. after_handshake: bytes that it wrote to the real stdout after that.
    stdout, stderr: bytes that the plugin printed and the stdio service carried (SyncStdout and SyncStderr).
    log: lines that it wrote to the real stderr, as dicts: hclog's records have "@level", "@message" and pairs; other
        lines are records at level debug, as with a host.
    broker: the host's side: `accept` serves what the plugin dials, `dial` connects to what the plugin accepts.
    pid, exit_code: the process's. exit_code is None while it runs, and negative if a signal ended it. killed: by us.
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
        self.killed = False
        self._first_line = queue.SimpleQueue[bytes]()
        self._ended: Future[None] = Future()  # done once the process has ended
        self._readers: list[threading.Thread] = []
        self.streams: list[Any] = []
        self._connected = False
        self._tls: TLSThread | None = None
        self._workers: Workers | None = None
        self._folder = tempfile.mkdtemp(prefix="host")  # for sockets

    def __exit__(self, *exc_info: object) -> None:
        """End the plugin."""
        self.kill()

    @property
    def pid(self) -> int:
        """The pid of the process that `start` started."""
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        """See above."""
        return self._process.poll() if self._process else None

    def start(
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
        self._in_thread(self._await_end, self._process)
        self._ended.add_done_callback(lambda _: self._first_line.put(b""))
        atexit.register(self._at_exit, os.getpid())
        try:
            line = self._first_line.get(timeout=timeout)
        except queue.Empty:
            raise self.error(f"timeout while waiting for plugin to start: no line in {timeout:g} s") from None
        if not line:
            raise self.error("plugin exited before we could connect: it printed no handshake line")
        self.handshake_line = line.decode(errors="replace").strip()
        try:
            parsed = parse_handshake(self.handshake_line)
        except ValueError as error:
            raise self.error(str(error)) from None
        if parsed.version not in handshake.protocol_versions:
            raise self.error(
                f"incompatible API version with plugin. Plugin version: {parsed.version},"
                f" Client versions: {list(handshake.protocol_versions)}"
            )
        if self._certificate and not parsed.server_cert:
            raise self.error("the host asked for AutoMTLS, but the handshake line has no certificate")
        self.connect(parsed, timeout, check_health)

    def connect(self, handshake: Handshake, timeout: float, check_health: bool) -> None:
        """Connect, check the plugin's health, and open the streams that every host opens."""
        self.version = handshake.version
        environment = Environment(socket_dir=self._folder)  # the broker uses Unix sockets, if the system has them
        transport: Plain | ByCompanion = Plain(environment, str)
        if self._certificate:
            try:
                contexts = tls.contexts_for(handshake.server_cert, *self._certificate, self._folder)
            except ssl.SSLError as error:
                raise self.error(f"the handshake line's sixth field is not a certificate: {error}") from None
            for context in (contexts.server, contexts.client):
                context.set_ciphers("DEFAULT:@SECLEVEL=1")  # RSA keys of 1,024 bits, which Go accepts too
            self._tls = TLSThread(contexts, environment, self._folder)
            transport = ByCompanion(self._tls)
        options = (*OPTIONS, ("grpc.enable_http_proxy", 0))
        self.channel = transport.channel(grpc, transport.dial(handshake.address), options)
        self._workers = Workers(2, 64)
        self.broker = Broker(transport, {"thread_pool": self._workers, "options": OPTIONS, "interceptors": ()})
        self._connected = True
        self._ended.add_done_callback(lambda _: self.broker.close())  # dials of the plugin's ids fail at once
        before = set(threading.enumerate())
        try:
            self.cancel_at_end(grpc.channel_ready_future(self.channel)).result(timeout)
        except grpc.FutureTimeoutError:
            raise self.error(f"cannot connect to {handshake.address.address} within {timeout:g} s") from None
        except grpc.FutureCancelledError:
            for thread in set(threading.enumerate()) - before:  # grpc's thread must not find the channel closed
                thread.join(1)
            raise self.error(f"plugin exited before we could connect to {handshake.address.address}") from None
        if check_health:
            self._check_health(timeout)
        stdio: Any = host_pb2_grpc.GRPCStdioStub(self.channel).StreamStdio(empty_pb2.Empty())
        self._in_thread(self._read_stdio, stdio)
        theirs = queue.SimpleQueue[Any]()  # the plugin's half of the stream; it exists once ours does
        ours = self.broker.StartStream(_later(theirs), None)  # type: ignore[arg-type]
        infos: Any = host_pb2_grpc.GRPCBrokerStub(self.channel).StartStream(ours)
        theirs.put(infos)
        self.streams = [stdio, infos]

    def kill(self, timeout: float = 10.0) -> None:
        """End the plugin as Kill in client.go does: Shutdown, 2 s, then SIGKILL. A second call does nothing.

        timeout: seconds for Shutdown's answer. go-plugin waits without limit.
        """
        if self._process and self._connected and self.exit_code is None:
            stub: Any = host_pb2_grpc.GRPCControllerStub(self.channel)
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):  # it has ended
                self.cancel_at_end(stub.Shutdown.future(host_pb2.Empty(), timeout=timeout)).result()
            try:
                self._process.wait(0.2)  # its last output may still be on its way
            except subprocess.TimeoutExpired:
                self.channel.close()  # as in Go: calls in flight lose their caller
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(KILL_GRACE)
        if self._process and self.exit_code is None:
            self.killed = True
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Close the connections to a plugin that has ended, or that we did not start. A second call does nothing."""
        if self._process:
            self._process.wait()
            atexit.unregister(self._at_exit)
        for stream in self.streams:
            stream.cancel()
        end = time.monotonic() + KILL_GRACE
        for reader in self._readers:
            reader.join(max(0.0, end - time.monotonic()))  # a child of the plugin may hold the pipes
        if self._connected:
            self._connected = False
            self.broker.close()
            self.channel.close()
        if self._tls:
            self._tls.close()
        if self._workers:
            self._workers.shutdown(wait=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _at_exit(self, pid: int) -> None:
        """At exit: kill a plugin that nobody has ended; one in Go would run on. pid: this process's, not a fork's."""
        if self._process and pid == os.getpid():
            self._process.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    def cancel_at_end(self, call: Any) -> Any:
        """Cancel a call, or another future of grpc, when the process ends. Return the call.

        Without this the call may wait longer: a child of the plugin can hold the connection.
        """
        self._ended.add_done_callback(lambda _: call.cancel())
        return call

    def error(self, text: str) -> PluginError:
        """Return an error with this text, the process's exit code, and its log."""
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the log may not be complete yet
                self._process.wait(1)
                self._readers[1].join(1)
        log = "".join(f"\n  {record.get('@level', '')}: {_text(record)}" for record in self.log)
        ended = "" if self.exit_code is None else f" The plugin has ended, exit code {self.exit_code}."
        error = PluginError(f"{text}.{ended}\nIts log:{log or ' (empty)'}")
        error.exit_code = self.exit_code
        return error

    def _check_health(self, timeout: float) -> None:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            call = stub.Check.future(health_pb2.HealthCheckRequest(service="plugin"), timeout=timeout)
            health = self.cancel_at_end(call).result()
        except grpc.FutureCancelledError:
            raise self.error("plugin exited before its health service answered") from None
        except grpc.RpcError as error:
            said: Any = error
            raise self.error(f'health check of "plugin" failed: {said.code().name}: {said.details()}') from None
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            raise self.error('the health service says that "plugin" is not SERVING')

    def _in_thread(self, read: Callable[[Any], None], source: Any) -> None:
        self._readers.append(threading.Thread(target=read, args=(source,), daemon=True))
        self._readers[-1].start()

    def _await_end(self, process: "subprocess.Popen[bytes]") -> None:
        process.wait()
        self._readers[0].join(0.5)  # the line may still be in the pipe; a child may hold that
        self._ended.set_result(None)

    def _read_stdout(self, pipe: IO[bytes]) -> None:
        with pipe:
            self._first_line.put(pipe.readline(64 * 1024))
            self.after_handshake += pipe.read()

    def _read_stderr(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self.log.append(_record(line))

    def _read_stdio(self, messages: Any) -> None:
        with contextlib.suppress(grpc.RpcError):  # the plugin has ended, or has no such service
            for message in messages:
                is_stdout = message.channel == host_pb2.StdioData.Channel.STDOUT
                (self.stdout if is_stdout else self.stderr).extend(message.data)


def _later(source: "queue.SimpleQueue[Iterator[Any]]") -> Iterator[Any]:
    yield from source.get()


def _record(line: bytes) -> dict[str, Any]:
    """Return a line of the plugin's stderr as the host logs it (logStderr in client.go)."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return {"@level": "debug", "@message": line.decode(errors="replace").rstrip()}


def _text(record: dict[str, Any]) -> str:
    return "\n    ".join(f"{record.get('@message', record)}\n{record.get('stacktrace', '')}".strip().splitlines())
