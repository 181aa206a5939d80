"""The programs that the benchmark runs: commands, and the Go host of tests/support/host with a plugin."""

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

from google.protobuf.message import Message

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "bench" / ".cache"
HOST = ROOT / "tests" / "support" / "host"
STUCK = 60.0  # seconds after which a program is taken for stuck, and killed
Process = Popen[str]


class BenchError(Exception):
    """A program could not do what it was asked."""


def environment() -> dict[str, str]:
    """Our environment without what would make Python or a plugin start differently from a user's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PLUGIN_", "KV_"))}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command of the set-up, and return its output; BenchError if it fails."""
    result = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BenchError((result.stdout + result.stderr).strip()[-400:] or f"exit code {result.returncode}")
    return result.stdout


def kill(process: Process) -> None:
    """Kill what is left of the group that the process leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def not_stuck(process: Process) -> Iterator[None]:
    """Kill the process if the block takes too long, and so end its wait."""
    timer = threading.Timer(STUCK, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def start(command: list[str], folder: Path, variables: dict[str, str], *, stdin: int, stderr: int) -> Process:
    """Start a process that leads a group of its own; its stdout is a pipe."""
    env = environment() | variables
    return Popen(
        command, cwd=folder, env=env, stdin=stdin, stdout=PIPE, stderr=stderr, text=True, start_new_session=True
    )


def timed(command: list[str], folder: Path, variables: dict[str, str], first_line: bool = False) -> tuple[float, str]:
    """Run a command; the seconds until it ended, or until its first line, and what it wrote."""
    begin = time.perf_counter()
    process = start(command, folder, variables, stdin=DEVNULL, stderr=DEVNULL if first_line else STDOUT)
    assert process.stdout
    try:
        with not_stuck(process):
            said = process.stdout.readline() if first_line else ""
            if not first_line:
                process.wait()
            seconds = time.perf_counter() - begin
            process.terminate()
            process.wait()
    finally:
        kill(process)
    with process.stdout:
        return seconds, said + process.stdout.read()


class Host:
    """The Go host with a plugin that is ready; close() ends both. seconds: how long the plugin took to be ready."""

    def __init__(self, command: list[str], folder: Path, **config: bool) -> None:
        mark, stderr = uuid.uuid4().hex, folder / "stderr"
        self._mark = f"BENCH_MARK={mark}".encode()
        given = {"cmd": command, "dir": str(folder), "cookie": ["BASIC_PLUGIN", "hello"], "versions": [1]}
        arguments = [f"{CACHE}/bin/host", json.dumps({**given, "stderr_file": str(stderr), **config})]
        self._process = start(arguments, folder, {"BENCH_MARK": mark}, stdin=PIPE, stderr=DEVNULL)
        try:
            self.seconds = self.ask("start")["seconds"] + self.ask("ping")["seconds"]
        except BenchError as error:
            self.close()
            last = stderr.read_text(errors="replace").strip().rpartition("\n")[2] if stderr.exists() else ""
            raise BenchError(f"{error}; its last line on stderr: {last}" if last else str(error)) from error

    def ask(self, op: str, message: Message | None = None, **request: Any) -> dict[str, Any]:
        """Have the host do one thing, and return its answer; BenchError if it failed, whatever the reason."""
        if message is not None:
            request["message"] = base64.b64encode(message.SerializeToString()).decode()
        assert self._process.stdin and self._process.stdout
        line = ""
        with not_stuck(self._process), suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line or '{"error": "the host crashed, or was stuck", "code": "Unknown"}')
        if "error" in answer:
            raise BenchError(answer["error"] if answer["code"] == "Unknown" else f"{answer['code']}: {answer['error']}")
        return {**answer, "message": base64.b64decode(answer.get("message", ""))}

    def memory(self) -> list[float]:
        """Bytes of all processes of the plugin, as Rss, where each counts what it shares with others, and as Pss.

        They are found by a mark in their environment, since the companion does not descend from the plugin.
        """
        rollups = ""
        for process in {*Path("/proc").glob("[0-9]*")} - {Path(f"/proc/{self._process.pid}")}:
            with suppress(OSError):  # it has ended, or is another user's
                if self._mark in (process / "environ").read_bytes().split(b"\0"):
                    rollups += (process / "smaps_rollup").read_text()
        if not rollups:
            raise BenchError("no process of the plugin is left")
        return [1024.0 * sum(map(int, re.findall(rf"\n{field}:\s*(\d+)", rollups))) for field in ("Rss", "Pss")]

    def has_exited(self) -> bool:
        """Whether the plugin, or the host itself, has ended."""
        try:
            return bool(self.ask("exited")["exited"])
        except BenchError:
            return True

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        with not_stuck(self._process), suppress(BrokenPipeError):
            self._process.stdin.close()  # then it kills the plugin, and exits
            self._process.wait()
        kill(self._process)
        self._process.stdout.close()
