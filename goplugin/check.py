"""Plays the host of a plugin in any language, and reports what works and what does not.

python -m goplugin check --cookie BASIC_PLUGIN=hello -- python plugin.py
"""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import empty_pb2, unknown_fields
from grpc_health.v1 import health_pb2, health_pb2_grpc

from goplugin.address import Address
from goplugin.companion import system, tls
from goplugin.handshake import HandshakeConfig
from goplugin.testing import Client, PluginError, parse_handshake, start

OK, NOTE, FAILED = "ok", "note", "FAILED"
PATIENCE = 5.0  # seconds for answers, and for processes to end

_LIST_SERVICES = b"\x3a\x00"  # ServerReflectionRequest(list_services="")
_NOT_ITS_OWN = ("grpc.", "plugin.GRPCBroker", "plugin.GRPCController", "plugin.GRPCStdio")  # services of every plugin
_MARKER = "GOPLUGIN_CHECK"  # this variable identifies processes that the plugin leaves behind
_PROC = Path("/proc")
_HOST = """
import json, sys, time
sys.path[:], command, config, auto_mtls, timeout = json.loads(sys.argv[1])
import goplugin.testing
config = goplugin.HandshakeConfig(*config)
options = {"auto_mtls": auto_mtls, "timeout": timeout, "check_health": False}
with goplugin.testing.start(command, config, **options) as client:
    print(client.pid, flush=True)
    time.sleep(600)
"""


class Result(NamedTuple):
    """One check. outcome: OK, FAILED, or NOTE (it works, but a host or user lacks something). cure: what to do."""

    check: str
    outcome: str
    text: str
    cure: str = ""


class Check:
    """The checks of one plugin. `run` yields their results."""

    def __init__(
        self, command: Sequence[str], handshake: HandshakeConfig, timeout: float, *, auto_mtls: bool | None = None
    ) -> None:
        """timeout: seconds for the plugin to start. auto_mtls: whether its host uses AutoMTLS; None tries both."""
        self._command, self._handshake, self._timeout = command, handshake, timeout
        self._kinds = (False, True) if auto_mtls is None else (auto_mtls,)
        self._marker = uuid.uuid4().hex
        self._ran: list[bool] = []  # the sessions that the plugin survived: whether each used AutoMTLS

    def run(self) -> Iterator[Result]:
        """Do all checks. At the end, remove all temporary files, and kill processes that the plugin left behind."""
        with tempfile.TemporaryDirectory(prefix="check") as temporary:
            self._temporary = Path(temporary)
            self._env = {**os.environ, _MARKER: self._marker, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary)}
            try:
                yield self._without_cookie()
                for auto_mtls in self._kinds:
                    yield from self._session(auto_mtls=auto_mtls)
                if self._ran:
                    yield self._host_dies()
            finally:
                for pid in self._left():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _without_cookie(self) -> Result:
        name = "by hand"
        env = {key: value for key, value in self._env.items() if key != self._handshake.magic_cookie_key}
        try:
            with tempfile.TemporaryFile() as stderr:  # not a pipe: a child could hold it longer than the plugin lives
                files: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": stderr}
                run = subprocess.run(self._command, env=env, timeout=self._timeout, check=False, **files)
                stderr.seek(0)
                said = stderr.read().decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            return Result(name, FAILED, "it runs without the cookie", "exit without the cookie, and say why")
        if run.returncode == 0 or not said:
            text = f"exit code {run.returncode}, {len(said.splitlines())} lines on stderr"
            return Result(name, NOTE, text, "without the cookie, say on stderr that this is a plugin; exit with 1")
        return Result(name, OK, said.splitlines()[0])

    def _session(self, *, auto_mtls: bool) -> Iterator[Result]:
        kind = "AutoMTLS: " if auto_mtls else ""
        name, began = f"{kind}starts", time.monotonic()
        try:
            with start(
                self._command,
                self._handshake,
                auto_mtls=auto_mtls,
                env=self._env,
                timeout=self._timeout,
                check_health=False,
            ) as client:
                yield Result(name, OK, f"ready after {time.monotonic() - began:.2f} s")
                name = f"{kind}runs"
                for result in self._calls(client, auto_mtls=auto_mtls):
                    if result.outcome != OK:
                        time.sleep(0.2)  # the plugin may be about to end
                    _must_run(client)  # otherwise the result would mislead
                    yield result
                time.sleep(0.2)
                _must_run(client)
                self._ran.append(auto_mtls)
                began = time.monotonic()
                client.kill()
                yield self._shutdown(kind, client, time.monotonic() - began)
        except PluginError as error:
            cure = "see the plugin's log above"
            if auto_mtls != self._kinds[-1]:
                cure += "; the following checks use AutoMTLS"
            elif error.exit_code is None and (self._ran or "line has no certificate" in str(error)):
                cure = "honour PLUGIN_CLIENT_CERT: serve TLS, and put your certificate into the handshake line"
            yield Result(name, FAILED, str(error), cure)
            return
        yield self._nothing_left(f"{kind}left behind")
        yield self._stdout(kind, client)
        yield self._log(kind, client)

    def _calls(self, client: Client, *, auto_mtls: bool) -> Iterator[Result]:
        if auto_mtls:
            yield self._strangers(client)
        if self._ran:
            return  # the session without AutoMTLS has done the rest
        line = client.handshake_line
        yield Result("handshake line", OK, line)
        _, address, server_cert = parse_handshake(line)
        host = address.address.rpartition(":")[0]
        if address.network == "tcp" and not host.startswith(("127.", "[::1]", "localhost")):
            yield Result("address", FAILED, f"it listens on {address.address}", "listen only on 127.0.0.1")
        if server_cert and not auto_mtls:
            cure = "without PLUGIN_CLIENT_CERT send no certificate: a host without AutoMTLS panics on it"
            yield Result("certificate", FAILED, "the line has one, but the host did not ask for AutoMTLS", cure)
        yield self._health(client)
        yield Result("version", OK, f"{client.version} of {list(self._handshake.protocol_versions)}")
        for name, stream, missed in (
            ("stdio", client.streams[0], "serve plugin.GRPCStdio: it brings what the plugin prints to the host"),
            ("broker", client.streams[1], "serve plugin.GRPCBroker if host or plugin need further connections"),
        ):
            time.sleep(0.1)
            if stream.is_active():
                yield Result(name, OK, "the stream is open")
            else:
                yield Result(name, NOTE, f"the stream ended: {stream.code().name}", missed)
        yield self._services(client)

    def _health(self, client: Client) -> Result:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)
        call = stub.Check.future(health_pb2.HealthCheckRequest(service="plugin"), timeout=PATIENCE)
        try:
            status = client.cancel_at_end(call).result().status
        except grpc.FutureCancelledError:
            return Result("health", FAILED, "no answer")
        except grpc.RpcError as error:
            said: Any = error
            cure = 'add the health service, and set "plugin" to SERVING: hosts that ping their plugins need it'
            return Result("health", FAILED, f'no answer for "plugin": {said.code().name}', cure)
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        return Result("health", OK if name == "SERVING" else FAILED, f'"plugin" is {name}')

    def _services(self, client: Client) -> Result:
        for version in ("v1", "v1alpha"):
            method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            call: Any = client.channel.stream_stream(method)
            with contextlib.suppress(grpc.RpcError, StopIteration):
                answers = client.cancel_at_end(call(iter([_LIST_SERVICES]), timeout=PATIENCE))
                listed = _fields([next(answers)], 6)  # ServerReflectionResponse.list_services_response
                answers.cancel()
                if not listed:
                    continue  # an error_response
                names = sorted(name.decode() for name in _fields(_fields(listed, 1), 1))  # service, name
                if own := [name for name in names if not name.startswith(_NOT_ITS_OWN)]:
                    return Result("services", OK, ", ".join(own))
                cure = "add your service to the server; if it is there, reflection must list it too"
                return Result("services", FAILED, "none of its own: a host has nothing to call", cure)
        cure = "add gRPC reflection: with it, check and tools such as grpcurl list the services"
        return Result("services", NOTE, "unknown: the plugin has no reflection", cure)

    def _strangers(self, client: Client) -> Result:
        address = parse_handshake(client.handshake_line).address
        for who, pair in (("without a certificate", None), ("with another certificate", tls.make_certificate())):
            if _is_served(address, pair, self._temporary):
                cure = "require the host's certificate; grpcio's own TLS cannot verify it (its key is P-521)"
                return Result("AutoMTLS: strangers", FAILED, f"the plugin serves a caller {who}", cure)
        return Result("AutoMTLS: strangers", OK, "refused")

    def _shutdown(self, kind: str, client: Client, seconds: float) -> Result:
        name = f"{kind}Shutdown"
        if client.killed:
            cure = "serve plugin.GRPCController: answer Shutdown at once, and end within 2 s"
            said = 'the plugin had to be killed; a host logs "plugin failed to exit gracefully"'
            return Result(name, FAILED, said, cure)
        outcome = OK if client.exit_code == 0 else NOTE
        return Result(name, outcome, f"the process ended after {seconds:.2f} s, exit code {client.exit_code}")

    def _nothing_left(self, name: str, plugin: int = 0) -> Result:
        end = time.monotonic() + PATIENCE
        while (pids := self._left(plugin)) and time.monotonic() < end:
            time.sleep(0.05)
        if pids:
            return Result(name, FAILED, f"processes: {pids}", "end the processes that the plugin started")
        files = sorted(path.name for path in self._temporary.iterdir())
        if files:
            return Result(name, NOTE, f"in TMPDIR: {', '.join(files)}", "remove files and sockets before exit")
        return Result(name, OK, "nothing" if _PROC.is_dir() else "no files; this system does not list processes")

    def _stdout(self, kind: str, client: Client) -> Result:
        name = f"{kind}stdout"
        if client.after_handshake.strip():
            cure = "write only the handshake line to stdout: the host drops the rest, and a long line blocks"
            return Result(name, FAILED, f"after the line: {bytes(client.after_handshake[:100])!r}", cure)
        return Result(name, OK, "nothing but the line")

    def _log(self, kind: str, client: Client) -> Result:
        name = f"{kind}log"
        for record in client.log:
            wrong = [key for key in ("@message", "@level", "@timestamp") if not isinstance(record.get(key, ""), str)]
            if wrong:
                return Result(name, FAILED, f"{wrong[0]} is not a string: a host panics", "write strings there")
        plain = [record for record in client.log if "@timestamp" not in record]
        if plain:
            cure = "write hclog's JSON to stderr; the host logs other lines at debug"
            example = str(plain[0].get("@message"))[:80]
            return Result(name, NOTE, f"{len(plain)} lines are plain text, such as {example!r}", cure)
        return Result(name, OK, f"{len(client.log)} records")

    def _host_dies(self) -> Result:
        arguments = json.dumps([sys.path, [*self._command], [*self._handshake], self._ran[0], self._timeout])
        host = subprocess.Popen(
            [sys.executable, "-c", _HOST, arguments], env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with host, host.stdout or contextlib.nullcontext() as pipe:
            pid = int((pipe and pipe.readline()) or 0)
            host.kill()
        if not pid:
            return Result("host dies", FAILED, "the plugin did not start")
        began = time.monotonic()
        if self._nothing_left("", pid).outcome == FAILED:
            with contextlib.suppress(OSError):  # run() kills the others
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            # A note only: plugins in Go run on, too.
            cure = "end when the parent process is gone, or nobody reads stdout and stderr any more"
            return Result("host dies", NOTE, f"the plugin still runs {PATIENCE:g} s later", cure)
        return Result("host dies", OK, f"the plugin ended {time.monotonic() - began:.2f} s later")

    def _left(self, plugin: int = 0) -> list[int]:
        """Return the processes that have our marker in their environment. Without /proc, only the plugin itself."""
        marker, found = f"{_MARKER}={self._marker}".encode(), []
        for path in _PROC.glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marker in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found or [plugin] * (plugin != 0 and not system.has_ended(plugin))


def _must_run(client: Client) -> None:
    if client.exit_code is not None:
        raise client.error("plugin exited, although no host had called Shutdown")


def _fields(messages: list[bytes], number: int) -> list[bytes]:
    """Return the values of a field, which is text, bytes or a message, in all these protobuf messages."""
    sets: Any = [unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(message)) for message in messages]
    return [field.data for one in sets for field in one if field.field_number == number]


def _is_served(address: Address, pair: tuple[bytes, bytes] | None, folder: Path) -> bool:
    """Whether the plugin talks HTTP/2 to a caller with this certificate and key, PEM; None for no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if pair:
        file = folder / "stranger"
        file.write_bytes(b"".join(pair))
        context.load_cert_chain(file)
        file.unlink()
    try:
        with address.connect(PATIENCE) as raw, context.wrap_socket(raw) as secure:
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            return bool(secure.recv(1))
    except OSError:
        return False
