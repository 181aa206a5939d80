"""The peers that the benchmark compares, and how each is installed in bench/.cache."""

import json
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from programs import CACHE, HOST, ROOT, BenchError, run

GO_PLUGIN, GO_PLUGIN_VERSION = "github.com/hashicorp/go-plugin", "v1.8.0"


@dataclass
class Peer:
    """A plugin to measure."""

    key: str
    name: str
    files: list[str] = field(default_factory=list)  # as `cp -r` takes them, in the project's folder
    packages: list[str] = field(default_factory=list)  # besides those of its requirements.txt
    stubs: str = ""  # what generates code from kv.proto, if it brings none: grpc or grpclib
    commands: dict[str, list[str]] = field(default_factory=dict)  # of the plugin, and of the one whose Get waits
    versions: dict[str, str] = field(default_factory=dict)
    failure: str = ""  # why it could not be installed

    @property
    def folder(self) -> Path:
        return CACHE / self.key

    def command(self, kind: str = "plugin") -> list[str]:
        if self.failure:
            raise BenchError(self.failure)
        return self.commands[kind]


SHARED = ["goplugin", "kv_pb2.py", "kv_pb2_grpc.py", "requirements.txt", "constraints.txt"]
OURS = Peer("ours", "this plugin", [*SHARED, "plugin.py"])
NATIVE = Peer("native", "this plugin, pygrpc-native", OURS.files, ["pygrpc-native"], stubs="grpc")
UPSTREAM = Peer("upstream", f"upstream's plugin-python {GO_PLUGIN_VERSION}")
GO = Peer("go", f"plugin in Go {GO_PLUGIN_VERSION}")
PEERS = [
    OURS,
    Peer("asyncio", "this plugin, asyncio", [*SHARED, "examples/asyncio/plugin.py"]),
    NATIVE,
    UPSTREAM,
    Peer("python_plugin", "python-plugin 0.1.0", ["bench/peers/python_plugin/."], stubs="grpclib"),
    Peer("pyvider", "pyvider-rpcplugin 0.5.5", ["bench/peers/pyvider/."], stubs="grpc"),
    GO,
]
TERRAFORM = Peer("terraform", "a provider on tf", ["goplugin", "bench/peers/terraform/."])


def set_up() -> None:
    """Build the Go programs, then install each peer; one that cannot be installed keeps the reason."""
    if not shutil.which("go"):
        sys.exit("The benchmark needs Go: the hosts of plugins are Go programs. `make bench` installs it from PyPI.")
    CACHE.mkdir(exist_ok=True)
    example = f"{GO_PLUGIN}/examples/grpc"  # as a host, `grpc`, and as a plugin
    for package in (".", example, f"{example}/plugin-go-grpc", f"{ROOT}/bench/peers/go/waiting.go"):
        run("go", "build", "-o", f"{CACHE}/bin/", package, cwd=HOST)
    GO.commands = {"plugin": [f"{CACHE}/bin/plugin-go-grpc"], "waiting": [f"{CACHE}/bin/waiting"]}
    GO.versions = {"go": run("go", "env", "GOVERSION").strip(), "go-plugin": GO_PLUGIN_VERSION}
    module = run("go", "list", "-m", "-f", "{{.Dir}}", GO_PLUGIN, cwd=HOST).strip()
    UPSTREAM.files = [f"{module}/examples/grpc/plugin-python/."]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(install, [peer for peer in [*PEERS, TERRAFORM] if peer is not GO]))
    if OURS.failure:
        sys.exit(f"This plugin {OURS.failure}")


def install(peer: Peer) -> None:
    """Copy the peer's files, make its venv, and generate code for it."""
    folder = peer.folder
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run("cp", "-r", *peer.files, "bench/peers/waiting.py", folder)
        run("chmod", "-R", "u+w", folder)  # Go's module cache is read-only, but Python keeps compiled modules here
        if peer is NATIVE:  # as the guide says
            source = (folder / "plugin.py").read_text().replace("import grpc\n", "import grpc\nimport pygrpc_native\n")
            (folder / "plugin.py").write_text(source.replace("= grpc.server(", "= pygrpc_native.server("))
        python = make_venv(peer)
        if peer.stubs:
            plugin = f"--plugin=protoc-gen-grpclib_python={python.parent}/protoc-gen-grpclib_python"
            outputs = [f"--python_out={folder}", f"--{peer.stubs}_python_out={folder}"]
            run(sys.executable, "-m", "grpc_tools.protoc", "-I.", plugin, *outputs, "kv.proto")
        peer.commands = {kind: [str(python), str(folder / f"{kind}.py")] for kind in ("plugin", "waiting")}
        installed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
        peer.versions = {one["name"]: one["version"] for one in installed if one["name"] not in ("pip", "setuptools")}
    except (BenchError, OSError) as error:
        peer.failure = f"cannot be installed: {error}"


def make_venv(peer: Peer) -> Path:
    """The python of the peer's venv, with the packages that its files ask for."""
    python = CACHE / "venvs" / f"{peer.key}-{platform.python_version()}" / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", python.parent.parent)
    lists = {"-r": peer.folder / "requirements.txt", "-c": peer.folder / "constraints.txt"}
    found = [f"{option}{path}" for option, path in lists.items() if path.exists()]
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *peer.packages, *found)
    return python


def build_one_file() -> Path:
    """This plugin as one file, made by shiv as the guide says."""
    shutil.rmtree(CACHE / "shiv", ignore_errors=True)  # what earlier ones unpacked there
    file = CACHE / "plugin.pyz"
    shiv = ("shiv", "--python", OURS.command()[0], "--site-packages", OURS.folder, "-e", "plugin:main", "-o", file)
    run(sys.executable, "-m", *shiv, "-r", "requirements.txt", "--constraint", "constraints.txt")
    return file
