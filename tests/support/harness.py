"""A Go host on go-plugin, which tests control over pipes; a test's processes; the check that nothing outlives it."""

import base64
import contextlib
import itertools
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import Message

import goplugin

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
PLUGINS = SUPPORT / "plugins"
KV_COOKIE = ("BASIC_PLUGIN", "hello")

# The longest wait for what should happen at once; only failing tests wait so long.
PATIENCE = 30.0


# The ending of programs' names.
EXE = ".exe" if sys.platform == "win32" else ""


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait for the condition's first true value and return it; if there is none in time, return the last value."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.001)
    return value


def name_of(process: psutil.Process) -> str:
    """The name of its program, in lower case."""
    # On Windows from its command: Wine does not know the name of a process.
    name = process.name() if os.name == "posix" else Path(process.cmdline()[0]).name
    return name.lower()


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def is_companion(process: psutil.Process) -> bool:
    """On Windows, whether the process is a companion; it has the same command as its plugin."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return "GOPLUGIN_COMPANION" in process.environ()
    return False


class CallError(Exception):
    """A call that ended with a status other than OK; code is Go's name of the status, for example NotFound."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Host:
    """The Go host of tests/support/host, running."""

    def __init__(self, binary: Path, config: dict[str, Any], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [binary, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        self._ids = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_stderr)]
        self.stderr = b""
        for reader in self._readers:
            reader.start()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Have the host do one thing, and return its answer. CallError if it fails."""
        return self.begin(op, **arguments)()

    def begin(self, op: str, **arguments: Any) -> Callable[[], dict[str, Any]]:
        """Have the host begin one thing. Call the result to wait for the answer."""
        number = next(self._ids)
        answers = self._answers[number] = queue.SimpleQueue()
        if isinstance(message := arguments.get("message"), bytes):
            arguments["message"] = base64.b64encode(message).decode()
        with self._lock:
            assert self.process.stdin
            self.process.stdin.write(json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n")
            self.process.stdin.flush()

        def result() -> dict[str, Any]:
            answer = answers.get(timeout=4 * PATIENCE)
            if "error" in answer:
                raise CallError(answer["code"], answer["error"])
            for key in ("message", "stdout", "stderr"):
                if key in answer:
                    answer[key] = base64.b64decode(answer[key] or "")
            return answer

        return result

    def call(self, method: str, request: Message | bytes, response: Any = None, **arguments: Any) -> Any:
        """Make a unary call. Returns the response as the given message class, or as bytes."""
        message = request if isinstance(request, bytes) else request.SerializeToString()
        answer: bytes = self.ask("call", method=method, message=message, **arguments)["message"]
        return response.FromString(answer) if response else answer

    def log(self) -> list[dict[str, Any]]:
        """The host's log so far, with the plugin's records."""
        return [json.loads(line) for line in self.ask("log")["text"].splitlines()]

    def logged(self, text: str, **fields: Any) -> dict[str, Any] | None:
        """Wait for the first record whose message has the text and whose pairs have the fields."""

        def find() -> dict[str, Any] | None:
            for record in self.log():
                if text in record["@message"] and fields.items() <= record.items():
                    return record
            return None

        found: dict[str, Any] | None = eventually(find)
        return found

    def logged_now(self, text: str) -> bool:
        """Whether the log has the text anywhere, so far."""
        return any(text in str(record) for record in self.log())

    def close(self) -> None:
        """End the host normally: it kills its plugin first."""
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                pytest.fail("the host hangs in Kill()")
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream and not stream.closed:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            answer = json.loads(line)
            self._answers.pop(answer["id"]).put(answer)
        for waiting in self._answers.values():
            waiting.put({"code": "HostEnded", "error": "the host ended before it answered"})

    def _read_stderr(self) -> None:
        assert self.process.stderr
        self.stderr = self.process.stderr.read()


class World:
    """The folder, environment and processes of one test."""

    def __init__(
        self, folder: Path, host_binary: Path, *, auto_mtls: bool, on_asyncio: bool, multiplexed: bool
    ) -> None:
        self.auto_mtls, self.on_asyncio, self.on_native = auto_mtls, on_asyncio, False
        self.multiplexed = multiplexed
        self.kv_plugin = ROOT / ("examples/asyncio/plugin.py" if on_asyncio else "plugin.py")
        self.folder = folder / "work"
        self.temporary = folder / "tmp"
        self.folder.mkdir()
        self.temporary.mkdir()
        self.marker = uuid.uuid4().hex
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PLUGIN_", "PYTHON"))}
        if "PYTHONWARNINGS" in os.environ:  # as in test_versions.py
            inherited["PYTHONWARNINGS"] = os.environ["PYTHONWARNINGS"]
        self.env = {
            **inherited,
            "MARKER": self.marker,
            **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(self.temporary)),  # the latter two on Windows
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if on_asyncio:
            self.env["PROBE_ON_ASYNCIO"] = "yes"
        self._binary = host_binary
        self._hosts: list[Host] = []
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def serves(self) -> str:
        """The plugin's record when it begins to serve."""
        return f"goplugin {goplugin.__version__} serves, with grpcio {grpc.__version__}"

    def use_native(self, folder: Path) -> None:
        """Have plugins use pygrpc-native, not grpc.server. folder: plugin.py for it, and newly generated code."""
        self.on_native = True
        self.kv_plugin = folder / "plugin.py"
        self.env["PROBE_ON_NATIVE"] = "yes"
        self.env["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"

    def host(
        self,
        script: Path | str | None = None,
        *,
        python: Path | str = sys.executable,
        shell: bool = False,
        **config: Any,
    ) -> Host:
        """A Go host for the plugin script, by default the KV plugin's. config: see tests/support/host/main.go."""
        command = [str(python), str(script or self.kv_plugin)]
        if shell:  # as go-plugin's KV example does; two commands, so that the shell stays the plugin's parent
            command = ["sh", "-c", f"{shlex.join(command)}; exit $?"]
        defaults: dict[str, Any] = {"cmd": command, "dir": str(self.folder), "cookie": KV_COOKIE, "versions": [1]}
        if sys.platform == "win32":
            defaults["start_timeout"] = 120  # under Wine, Python starts slowly
        defaults["auto_mtls"] = self.auto_mtls and "reattach" not in config
        defaults["multiplex"] = self.multiplexed and "reattach" not in config
        host = Host(self._binary, {**defaults, **config}, self.env)
        self._hosts.append(host)
        return host

    def started(self, script: Path | str | None = None, **config: Any) -> Host:
        """A Go host that has started its plugin."""
        host = self.host(script, **config)
        host.ask("start")
        return host

    def run(self, *command: str | Path, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process, which ends with the test."""
        options = {"cwd": self.folder, "env": self.env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(list(map(str, command)), **options)
        self._started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All processes of this test: hosts, shells, plugins and what they have started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARKER") == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
        return found

    def plugins(self) -> list[psutil.Process]:
        """The Python processes among them: plugins and their children."""
        companions = self.companions() if sys.platform == "win32" else []
        return [process for process in self._named("python") if process not in companions]

    def companions(self) -> list[psutil.Process]:
        """The companions of the plugins."""
        if sys.platform == "win32":
            return [process for process in self._named("python") if is_companion(process)]
        return self._named("companion")

    def _named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if name in name_of(process):
                    found.append(process)
        return found

    def plugin(self) -> psutil.Process:
        """The one plugin."""

        def without_children() -> list[psutil.Process]:
            running = self.plugins()
            return [process for process in running if process.ppid() not in [other.pid for other in running]]

        # A companion's name is python, too, for a moment.
        eventually(lambda: len(without_children()) == 1, 5)
        (plugin,) = without_children()
        return plugin

    def companion(self) -> psutil.Process:
        """The one companion."""
        eventually(self.companions)
        (companion,) = self.companions()
        return companion

    def gone(self, seconds: float = 10) -> bool:
        """Whether plugin and companion leave in time; the default is enough even on a busy machine."""
        return bool(eventually(lambda: not self.plugins() and not self.companions(), seconds))

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        for started in self._started:
            if started.poll() is None:
                started.kill()
            if not (started.stdout and started.stdout.closed):  # otherwise the test has read it
                started.communicate()
        # Plugins leave within 2 s of their host.
        eventually(lambda: not self.processes(), 3)
        processes = self.processes()
        left = [name_of(process) for process in processes]
        for process in processes:
            process.kill()
        for folder in self.temporary.glob("pymp-*"):  # multiprocessing leaves this folder if it is killed
            shutil.rmtree(folder)
        assert not left, f"processes outlived the test: {left}"
        files = [file.name for file in self.temporary.iterdir()]
        assert not files, f"files outlived the test: {files}"
