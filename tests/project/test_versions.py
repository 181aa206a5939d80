"""`make matrix`: the plugin with the packages and Pythons that a project may already have."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import probe
import pytest
import venvs
from harness import ROOT, World, eventually
from probe_plugin import Probe

import kv_pb2

pytestmark = pytest.mark.slow

GRPC = ["grpcio", "grpcio-health-checking", "grpcio-reflection"]
PACKAGES = {
    "oldest": venvs.lower_ends(),
    "protobuf 5": [*(f"{name}==1.66.2" for name in GRPC), "protobuf==5.27.2", "cryptography==41.0.7"],
    "protobuf 6": [*(f"{name}==1.73.1" for name in GRPC), "protobuf==6.31.0", "cryptography==45.0.7"],
    "newest": [],
}
# -W error breaks the import of these packages: protobuf 4 uses what Python 3.12 deprecates.
NOISY = {("3.12", "oldest")}


class Setup(NamedTuple):
    python: Path
    warnings: str


PYTHONS = venvs.pythons()
NEWEST = venvs.supported()[-1]
# Tests of workers: goplugin's threads, and multiprocessing, whose defaults change between Pythons.
WORKERS = ["tests/unit/test_workers.py", "tests/plugin/test_children.py", "tests/plugin/test_hostile_children.py"]

# One pytest process runs the tests of a setup, and makes it once.
SETUPS = [
    pytest.param((python, packages), id=f"{python}, {packages}", marks=pytest.mark.xdist_group(f"{python}, {packages}"))
    for python in dict.fromkeys([*venvs.supported(), *PYTHONS])
    for packages in PACKAGES
]


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest, programs: Path) -> Setup:
    version, packages = request.param
    if version not in PYTHONS:
        pytest.skip(f"no Python {version} on this machine")
    folder = programs / f"{version} {packages}"
    if not folder.exists():
        folder.mkdir()
        python = venvs.make(folder / "venv", PYTHONS[version])
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(PACKAGES[packages]))
        wheels: tuple[str | Path, ...] = ("--only-binary=:all:", "-c", constraints)
        with contextlib.suppress(subprocess.CalledProcessError):
            venvs.install(python, *wheels, "--no-deps", "grpcio")
            (folder / "has wheels").touch()
        if packages == "newest" or (folder / "has wheels").exists():
            venvs.install(python, *wheels, "-r", ROOT / "requirements.txt")
    if packages != "newest" and not (folder / "has wheels").exists():
        pytest.skip(f"this grpcio is older than Python {version}, and has no wheels for it")
    return Setup(folder / "venv/bin/python", "default" if (version, packages) in NOISY else "error")


@pytest.mark.grpcio_only("the setups do not have pygrpc-native")
@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
def test_the_plugin_works(world: World, setup: Setup, auto_mtls: bool) -> None:
    world.env["PYTHONWARNINGS"] = setup.warnings
    host = world.started(python=setup.python, auto_mtls=auto_mtls)
    host.call("/proto.KV/Put", kv_pb2.PutRequest(key="hello", value=b"world"))
    answer = host.call("/proto.KV/Get", kv_pb2.GetRequest(key="hello"), kv_pb2.GetResponse)
    assert answer.value.startswith(b"world")
    host.ask("kill")
    assert not world.processes() or eventually(lambda: len(world.processes()) == 1)  # the host
    assert not [record for record in host.log() if record["@level"] in ("warn", "error")]


@pytest.mark.grpcio_only("the setups do not have pygrpc-native")
@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
def test_what_the_host_calls_works(world: World, setup: Setup, auto_mtls: bool) -> None:
    host = probe.start(world, python=setup.python, auto_mtls=auto_mtls)
    service_id = host.ask("next_id")["broker"]
    host.ask("accept", broker=service_id)
    assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    probe.do(host, Probe.print, ["stdout", "printed", 1, 1])
    assert eventually(lambda: host.ask("stdio")["stdout"] == b"printed")
    assert host.ask("kill")["seconds"] < 1.9


@pytest.mark.timeout(600)
@pytest.mark.skipif(NEWEST not in PYTHONS, reason=f"no Python {NEWEST} on this machine")
def test_workers_on_the_newest_python(tmp_path: Path) -> None:
    """pytest itself runs on that Python, too."""
    python = venvs.make(tmp_path / "venv", PYTHONS[NEWEST])
    asked = ("-r", ROOT / "requirements.txt", "psutil", "pytest", "pytest-timeout", "pytest-xdist")
    venvs.install(python, "-c", ROOT / "constraints.txt", *asked)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    # Some of these tests fork a plugin that has threads, on purpose.
    env["PYTHONWARNINGS"] = "error,ignore:This process:DeprecationWarning"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "worker", *WORKERS]
    run = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
