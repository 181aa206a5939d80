"""Fixtures: what is built once, and the world of each test."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import worlds
from harness import EXE, ROOT, SUPPORT, World
from vault import Vault

from examples import Example


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder for built programs, removed after the tests."""
    with tempfile.TemporaryDirectory(prefix="programs") as folder:
        yield Path(folder)


def build(binary: Path, package: str) -> Path:
    """Build a Go program from the module of tests/support/host/go.mod, unless it is there."""
    if "GOPLUGIN_TEST_PROGRAMS" in os.environ:  # where there is no Go: under Wine
        return Path(os.environ["GOPLUGIN_TEST_PROGRAMS"], binary.name)
    if not binary.exists():
        assert shutil.which("go"), "the tests need Go: `make test` finds it"
        subprocess.run(["go", "build", "-o", binary, package], cwd=SUPPORT / "host", check=True)
    return binary


@pytest.fixture(scope="session")
def host_binary(programs: Path) -> Path:
    return build(programs / f"host{EXE}", ".")


@pytest.fixture(scope="session")
def example(programs: Path) -> Callable[[str], Path]:
    """Builds one of go-plugin's own example programs: example("grpc"), example("grpc/plugin-go-grpc")."""

    def build_example(name: str) -> Path:
        return build(programs / f"{name.replace('/', '-')}{EXE}", f"github.com/hashicorp/go-plugin/examples/{name}")

    return build_example


@pytest.fixture(scope="session")
def copies(programs: Path) -> Callable[[str], Example]:
    """Copies of the examples, each made once: copies("terraform")."""
    made: dict[str, Example] = {}

    def copy(name: str) -> Example:
        if name not in made:
            (programs / f"copy-{name}").mkdir()
            made[name] = Example(name, programs / f"copy-{name}")
        return made[name]

    return copy


@pytest.fixture
def vault(world: World, copies: Callable[[str], Example], host: str) -> Iterator[Vault]:
    """Vault with a copy of the example, ready to start. host: Vault's path, a parameter of the test."""
    example = copies("vault")
    example.run(world, "make protos")
    with contextlib.closing(Vault(world, example, host)) as vault:
        yield vault
    assert world.gone()


@pytest.fixture(scope="session")
def built(programs: Path) -> Path:
    """A folder with a wheel, an sdist, and `source`, a copy of the project."""
    folder = programs / "built"
    skipped = shutil.ignore_patterns(".venv*", ".git", ".hosts", ".windows", "demo", "__pycache__", ".*cache")
    shutil.copytree(ROOT, folder / "source", ignore=skipped)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=folder / "source", check=True)
    return folder


@pytest.fixture(scope="session")
def on_native(programs: Path) -> Path:
    """plugin.py on pygrpc-native: changed, and its code generated again, as docs/guide.md says."""
    pytest.importorskip("pygrpc_native", reason="pygrpc-native has no wheel for this machine")
    folder = programs / "native"
    folder.mkdir()
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", "--python_out=.", "--grpc_python_out=."]
    subprocess.run([*command, "kv.proto"], cwd=folder, check=True)
    source = (ROOT / "plugin.py").read_text()
    new_import, new_server = "import pygrpc_native\n", "server = pygrpc_native.server(**plugin.server_arguments)\n"
    assert f"{new_import}\n{new_server}" in (ROOT / "docs" / "guide.md").read_text()
    source = source.replace("import grpc\n", "import grpc\n" + new_import)
    source = source.replace("server = grpc.server(**plugin.server_arguments)\n", new_server)
    assert source.count("pygrpc_native") == 2
    (folder / "plugin.py").write_text(source)
    return folder


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On Windows, leave out modules without Windows tests: some of them cannot even be imported there."""
    if sys.platform == "win32" and collection_path.name.startswith("test_"):
        return "pytest.mark.windows" not in collection_path.read_text(encoding="utf-8")
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows, run only the tests marked for it; under Wine, which is slow, at most four cases of each."""
    if sys.platform == "win32":
        most = 4 if "GOPLUGIN_TEST_PROGRAMS" in os.environ else len(items)
        chosen: dict[str, list[pytest.Item]] = {}
        for item in items:
            if item.get_closest_marker("windows") and not item.get_closest_marker("unix_only"):
                chosen.setdefault(item.nodeid.partition("[")[0], []).append(item)
        items[:] = [item for cases in chosen.values() for item in cases[:most]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test in each of its worlds."""
    if "world" in metafunc.fixturenames:
        markers = {marker.name for marker in metafunc.definition.iter_markers()}
        metafunc.parametrize("world", worlds.of(metafunc.module.__name__, markers), indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest, host_binary: Path) -> Iterator[World]:
    # Not pytest's tmp_path: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="plugin") as folder:
        world = World(
            Path(folder),
            host_binary,
            auto_mtls="AutoMTLS" in request.param,
            on_asyncio="asyncio" in request.param,
            multiplexed="multiplexed" in request.param,
        )
        if "native" in request.param:
            world.use_native(request.getfixturevalue("on_native"))
        yield world
        world.close()
