#!/usr/bin/env python3
"""The benchmark: this plugin beside its peers, on one Go host. It is not a test: it reports, and never fails.

    python bench/bench.py [--quick] [--output FOLDER]
    python bench/bench.py --from bench/results.json

Writes results.json (all raw figures), results.md (tables of ratios) and results.svg (the main figures as bars).
README.md says what is measured and how.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from contestants import GO, OURS, PEERS, TERRAFORM, Peer, build_one_file, set_up
from figures import FIGURES, FULL, HEAVIEST, IMPORTS, LOADS, MODES, QUICK, RUNNERS, STRANGERS, USUAL, WAITS, Load
from google.protobuf.message import Message
from programs import CACHE, ROOT, BenchError, Host, timed
from report import write

sys.path.append(str(ROOT))
import kv_pb2  # plugin.py's

Found = dict[str, float]  # what one measurement found, by figure
Series = dict[str, list[float]]  # the values of all rounds


def rotated(those: Sequence[Any], number: int) -> list[Any]:
    """The order of a round: each begins with another, so that none always follows the same."""
    first = number % len(those)
    return [*those[first:], *those[:first]]


class Bench:
    """All measurements. results: as results.json has them."""

    def __init__(self, effort: dict[str, Any], folder: Path) -> None:
        self.effort, self.folder, self.begin = effort, folder, time.monotonic()
        os.environ["TMPDIR"] = str(folder)  # of all that is started
        self.hosts: dict[str, Host] = {}  # of the plugins that stay open, by peer
        self.results: dict[str, Any] = {"figures": {}, "strangers refused": {mode: {} for mode in MODES}}
        for peer in PEERS:
            (folder / peer.key).mkdir()
            for load in LOADS:  # what Put would have left there, for peers that cannot put as much
                value = b"x" * load.size + b"\n\nWritten from the benchmark"
                (folder / peer.key / f"kv_{load.size}").write_bytes(value)

    def run(self) -> None:
        everything = [*(key for key in FIGURES if key != "kv_put"), "verified"]
        for mode in MODES:
            self.rounds("warming up", 2, mode, everything, self.warm_up)
            self.rounds("starts", self.effort["starts"], mode, ["ready", "fresh", "kill"], self.start)
            for number in range(self.effort["loads"]):
                self.say(f"loads, round {number + 1} of {self.effort['loads']}, {MODES[mode]}")
                for load, peer in product(LOADS, rotated(PEERS, number)):
                    self.turn(peer, mode, load.keys, self.load, load)
                for peer in PEERS:
                    self.turn(peer, mode, ["resident", "proportional"], self.memory)
            self.rounds("strangers", 1, mode, ["verified"], self.strangers)
            self.close()
            for key, number in WAITS.items():
                self.rounds(f"{number} handlers", self.effort["waits"], mode, [key], self.wait, key, number)
        self.rounds("kv put", self.effort["commands"], "plain", ["kv_put"], self.kv_put)
        for name, measure in {"floor": self.floor, "terraform": self.apply, "multiplexed": self.multiplexed}.items():
            self.say(name)
            values: Series = defaultdict(list)
            self.results[name] = {"values": values, "error": ""}
            try:
                measure(values)
            except BenchError as error:
                self.results[name]["error"] = self.clean(error)

    def rounds(self, label: str, rounds: int, mode: str, *what: Any) -> None:
        self.say(f"{label} {MODES[mode]}")
        for number in range(rounds):
            for peer in rotated(PEERS, number):
                self.turn(peer, mode, *what)

    def turn(self, peer: Peer, mode: str, keys: list[str], measure: Callable[..., Found], *more: Any) -> None:
        """Keep what measure() finds for these keys, or its error; unless it failed twice, and never worked."""
        figures = self.results["figures"].setdefault(mode, {})
        cells = [figures.setdefault(key, {}).setdefault(peer.key, {"values": [], "errors": []}) for key in keys]
        if any(len(cell["errors"]) >= 2 and not cell["values"] for cell in cells):
            return
        try:
            for key, value in measure(peer, mode, *more).items():
                figures[key][peer.key]["values"].append(value)
        except BenchError as error:
            for cell in cells:
                cell["errors"].append(self.clean(error))

    def say(self, label: str) -> None:
        print(f"{time.monotonic() - self.begin:5.0f} s  {label}", flush=True)

    def clean(self, error: Exception) -> str:
        """The error on one line, not too long, and without this machine's paths."""
        text = str(error)
        for path in (self.folder, CACHE, ROOT, Path.home()):
            text = text.replace(str(path), "...")
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
        text = re.sub(r"(/[\w.-]+)*/(plugin|pyvider)[\w-]*(\.sock)?\b", "SOCKET", text)
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:297]}..."

    def open(self, peer: Peer, mode: str, kind: str = "plugin", *, multiplex: bool = False) -> Host:
        return Host(peer.command(kind), self.folder / peer.key, auto_mtls=mode == "mtls", multiplex=multiplex)

    def kept_open(self, peer: Peer, mode: str) -> Host:
        """The peer's plugin that stays open, idle while another has its turn."""
        if peer.key not in self.hosts:
            self.hosts[peer.key] = self.open(peer, mode)
            self.window(self.hosts[peer.key], HEAVIEST)  # so that its threads are there
        return self.hosts[peer.key]

    def close(self) -> None:
        while self.hosts:
            self.hosts.popitem()[1].close()

    def window(self, host: Host, load: Load) -> list[float]:
        """Calls per second, and the latency's p50 and p99."""
        message: Message = kv_pb2.GetRequest(key=str(load.size))
        if load.method == "Put":  # text, since upstream's plugin decodes it
            message = kv_pb2.PutRequest(key=f"put{load.size}", value=b"x" * load.size)
        how = {"size": load.size * (load.method == "Get"), "repeat": load.flight, "seconds": self.effort["window"]}
        answer = host.ask("load", message, method=f"/proto.KV/{load.method}", **how)
        return [answer[name] for name in ("rate", "p50", "p99")]

    # Each of these measures once, in a peer's turn.

    def warm_up(self, peer: Peer, mode: str) -> Found:
        """So that Python has compiled what it imports, and to see whether the peer does the same work as the others."""
        self.open(peer, mode, "waiting").close()
        with closing(self.open(peer, mode)) as host:
            host.ask("call", kv_pb2.PutRequest(key="check", value=b"hello"), method="/proto.KV/Put")
            answer = host.ask("call", kv_pb2.GetRequest(key="check"), method="/proto.KV/Get")["message"]
        if b"hello\n\nWritten from " not in answer:
            raise BenchError(f"Get returned {answer!r} after Put of b'hello'")
        return {}

    def start(self, peer: Peer, mode: str) -> Found:
        with closing(self.open(peer, mode)) as host:
            return {"ready": host.seconds, "fresh": host.memory()[0], "kill": host.ask("kill")["seconds"]}

    def load(self, peer: Peer, mode: str, load: Load) -> Found:
        host = self.kept_open(peer, mode)
        try:
            return dict(zip(load.keys, self.window(host, load), strict=True))
        except BenchError as error:
            if not host.has_exited():
                raise
            self.hosts.pop(peer.key).close()
            raise BenchError(f"the plugin died: {error}") from error

    def memory(self, peer: Peer, mode: str) -> Found:
        return dict(zip(("resident", "proportional"), self.kept_open(peer, mode).memory(), strict=True))

    def strangers(self, peer: Peer, mode: str) -> Found:
        """How callers without the host's key are refused, or that they are served."""
        host = self.kept_open(peer, mode)
        answers = self.results["strangers refused"][mode][peer.key] = {}
        for stranger in STRANGERS:
            try:
                host.ask("intrude", method=stranger)
                answers[stranger] = "served"
            except BenchError as error:
                answers[stranger] = self.clean(error)
        return {}

    def wait(self, peer: Peer, mode: str, key: str, number: int) -> Found:
        """In a fresh process, whose thread pool has not grown yet."""
        with closing(self.open(peer, mode, "waiting")) as host:
            seconds = host.ask("call", kv_pb2.GetRequest(key="wait"), method="/proto.KV/Get", repeat=number)["seconds"]
        if seconds < 0.1:
            raise BenchError(f"the handlers did not wait: {number} calls took {seconds:.3f} s")
        return {key: seconds}

    def kv_put(self, peer: Peer, mode: str) -> Found:
        """go-plugin's own KV host, which has no AutoMTLS.

        `exec`, since the host asks sh to run the plugin, and kills only that: behind a shell that stays beside its
        command, a plugin that does not leave by itself would live on, and the host would wait for it for good.
        """
        stored = self.folder / peer.key / "kv_hello"
        variables = {"KV_PROTO": "grpc", "KV_PLUGIN": " ".join(["exec", *peer.command()])}
        seconds, said = timed([f"{CACHE}/bin/grpc", "put", "hello", "world"], stored.parent, variables)
        if not stored.exists():
            raise BenchError(said[-400:] or "nothing was stored")
        stored.unlink()
        return {"kv_put": seconds}

    # Each of these measures all of its rounds.

    def floor(self, values: Series) -> None:
        """From our process's start to the handshake line, beside what merely importing grpc takes."""
        one_file = str(build_one_file())
        with closing(self.open(OURS, "plain")) as host:
            certificate = host.ask("certificate")["text"]
        python, plugin = OURS.command()
        cookie = {"BASIC_PLUGIN": "hello", "PLUGIN_PROTOCOL_VERSIONS": "1"}
        commands: dict[str, tuple[list[str], dict[str, str]]] = {
            "imports": ([python, "-c", IMPORTS], {}),
            "imports, and a line": ([python, "-c", f"{IMPORTS}; print(flush=True)"], {}),
            "plain": ([python, plugin], cookie),
            "mtls": ([python, plugin], {**cookie, "PLUGIN_CLIENT_CERT": certificate}),
            "one file": ([one_file], {**cookie, "SHIV_ROOT": f"{CACHE}/shiv"}),
        }
        for number in range(self.effort["floors"]):
            for name in rotated(list(commands), number):
                command, variables = commands[name]
                seconds, line = timed(command, ROOT, variables, first_line=True)
                if variables and not line.startswith("1|1|tcp|"):
                    raise BenchError(f"{line!r} is no handshake")
                values[name].append(seconds)

    def apply(self, values: Series) -> None:
        """`terraform apply` of 20 new resources, by a provider on goplugin and on tf's own runner."""
        program = shutil.which("terraform") or shutil.which("tofu")
        if not program:
            raise BenchError("neither terraform nor tofu is installed")
        settings = self.folder / "settings.tfrc"
        overrides = f'dev_overrides {{ "example.com/me/bench" = "{TERRAFORM.folder}" }}\n  direct {{}}'
        settings.write_text(f"provider_installation {{\n  {overrides}\n}}\n")
        variables = {"TF_CLI_CONFIG_FILE": str(settings), "CHECKPOINT_DISABLE": "1"}
        variables |= {"BENCH_PYTHON": TERRAFORM.command()[0], "HOME": str(self.folder)}  # there tf's runner has its key
        command = [program, "apply", "-auto-approve", "-input=false", "-no-color"]
        for number in range(self.effort["commands"] + 1):
            for runner in rotated(RUNNERS, number):
                with tempfile.TemporaryDirectory(dir=self.folder) as work:
                    shutil.copy(TERRAFORM.folder / "main.tf", work)
                    seconds, said = timed(command, Path(work), {**variables, "BENCH_RUNNER": runner})
                if "Apply complete! Resources: 20 added" not in said:
                    raise BenchError(said[-400:])
                if number:  # the first round warms up
                    values[runner].append(seconds)

    def multiplexed(self, values: Series) -> None:
        """Calls over a host's one connection, beside the same without, in turn: ours and the plugin in Go."""
        for number in range(self.effort["loads"]):
            for mode, peer in product(MODES, (OURS, GO)):
                for multiplex in rotated((True, False), number):
                    with closing(self.open(peer, mode, multiplex=multiplex)) as host:
                        self.window(host, USUAL)  # so that its threads are there
                        values[f"{mode} {peer.key} {multiplex}"].append(self.window(host, USUAL)[0])


def measure(effort: dict[str, Any]) -> dict[str, Any]:
    """Set everything up and measure; what results.json holds. Nothing in it names the machine."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = {
        "processor": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before": os.getloadavg()[0],
    }
    set_up()
    with tempfile.TemporaryDirectory(prefix="bench") as folder, closing(Bench(effort, Path(folder))) as bench:
        bench.run()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": effort is QUICK,
        "minutes": round((time.monotonic() - bench.begin) / 60, 1),
        "machine": machine,
        "python": platform.python_version(),
        "versions": {peer.key: peer.versions for peer in PEERS},
        "effort": effort,
        **bench.results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes, and rough; results in bench/.cache")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="earlier", help="measure nothing: report FILE again")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the results go, instead of bench")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit("ended by SIGTERM"))  # and everything with it
    earlier = arguments.earlier and json.loads(arguments.earlier.read_text())
    document = earlier or measure(QUICK if arguments.quick else FULL)
    write(document, arguments.output or (CACHE if arguments.quick else ROOT / "bench"))


if __name__ == "__main__":
    main()
