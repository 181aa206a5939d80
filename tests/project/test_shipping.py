"""The guide's "Shipping it", done literally: a Go host starts a path, or one executable file."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PLUGINS, ROOT, CallError, World, eventually
from kv import SUFFIX, get, put

from docs import console_block

pytestmark = pytest.mark.xdist_group("shipping")  # one process runs these tests, and builds the files once


@pytest.fixture(scope="module")
def one_file(programs: Path) -> Path:
    """The file that the guide's commands make from a new project, with the packages that are already installed."""
    project = programs / "notes"
    subprocess.run([sys.executable, "-m", "goplugin", "new", "--copy", project], cwd=ROOT, check=True)
    (project / ".venv").symlink_to(sys.prefix)
    block = console_block("shiv")
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    subprocess.run(["sh", "-e", "-c", "\n".join(commands)], cwd=project, check=True)
    shutil.rmtree(project / "build")  # the file needs nothing else
    return project / "notes.pyz"


@pytest.mark.parametrize("way", ["alone in a folder", "symlink"])
def test_one_file(world: World, one_file: Path, way: str) -> None:
    del world.env["PYTHONPATH"]
    world.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{world.env['PATH']}"
    world.env["SHIV_ROOT"] = str(world.folder / "unpacked")
    (world.folder / "grpc.py").write_text("raise SystemExit('the wrong module')\n")
    started = world.folder / "plugins" / "kv"
    started.parent.mkdir()
    if way == "symlink":
        started.symlink_to(one_file)
    else:
        shutil.copy(one_file, started)
    host = world.host(cmd=[str(started)])
    for _ in range(2):  # the second time it is already unpacked
        host.ask("start")
        put(host, "k", b"v")
        assert get(host, "k") == b"v" + SUFFIX
        assert host.ask("kill")["seconds"] < 1.9
        host = world.host(cmd=[str(started)])
    host.ask("start")
    host.process.kill()  # and the plugin leaves too, or the test fails


def shown(start: str) -> str:
    """The one listing of the guide that begins with `start`."""
    guide = (ROOT / "docs" / "guide.md").read_text()
    (listing,) = re.findall(rf"^```[a-z]+\n({re.escape(start)}.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    return str(listing)


@pytest.fixture
def project(world: World) -> Path:
    """The files to ship: plugin.py, its generated code, and goplugin."""
    del world.env["PYTHONPATH"]
    folder = world.folder / "project"
    folder.mkdir()
    for file in (ROOT / "kv_pb2.py", ROOT / "kv_pb2_grpc.py", ROOT / "plugin.py"):
        shutil.copy(file, folder)
    shutil.copytree(ROOT / "goplugin", folder / "goplugin", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)  # uv downloads into an empty cache
def test_the_path_that_uv_makes(world: World, project: Path, built: Path) -> None:
    shutil.rmtree(project / "goplugin")
    plugin = project / "plugin.py"
    head = shown("#!/usr/bin/env -S uv").replace("/folder/of/the/wheel", str(built))
    plugin.write_text(head + plugin.read_text().partition("\n")[2])
    plugin.chmod(0o755)
    world.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{world.env['PATH']}"
    world.env["UV_CACHE_DIR"] = str(world.folder / "cache")
    before = world.env.copy()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.env["UV_DEFAULT_INDEX"] = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(CallError, match="timeout while waiting for plugin to start"):
            world.host(cmd=[str(plugin)], start_timeout=1).ask("start")
        subprocess.run(["uv", "sync", "-q", "--script", plugin], env=before, check=True)
        for command in ([str(plugin)], ["uv", "run", str(plugin)]):
            host = world.started(cmd=command)  # uv does not ask for packages
            put(host, "k", b"v")
            assert get(host, "k") == b"v" + SUFFIX
            assert host.ask("kill")["seconds"] < 1.9
    host = world.started(cmd=[str(plugin)])
    host.process.kill()  # and the plugin leaves too, or the test fails
    for lock in world.temporary.glob("uv-*.lock"):  # uv leaves its lock files behind
        lock.unlink()


@pytest.fixture(scope="module")
def without_python(programs: Path) -> Path:
    """plugin.py with workers, made into one file by PyInstaller."""
    project = programs / "frozen"
    project.mkdir()
    for file in (ROOT / "kv_pb2.py", ROOT / "kv_pb2_grpc.py", ROOT / "plugin.py", PLUGINS / "pool_plugin.py"):
        shutil.copy(file, project)
    shutil.copytree(ROOT / "goplugin", project / "goplugin")
    command = [sys.executable, "-m", "PyInstaller", "--onefile", "--log-level", "ERROR", "pool_plugin.py"]
    subprocess.run(command, cwd=project, check=True)
    return project / "dist" / "pool_plugin"


@pytest.mark.slow
@pytest.mark.timeout(600)  # building takes a minute on a quiet machine
@pytest.mark.plain_only("workers do not depend on the host's settings")
@pytest.mark.parametrize("way", ["spawn", "forkserver", "fork"])
def test_one_file_of_pyinstallers_with_workers(world: World, without_python: Path, way: str) -> None:
    """The file starts itself for each worker. They are workers, not plugins: they log, and end with the plugin."""
    del world.env["PYTHONPATH"]
    host = world.started(cmd=[str(without_python)])
    pid, left = get(host, way).decode().split(" ", 1)
    assert left == "[]"
    assert host.logged("x" * 20_000, **{"@level": "warn", "@module": "of.a.worker", "pid": int(pid)})
    put(host, "ProcessPoolExecutor", way.encode())
    assert eventually(lambda: sum(record["@message"] == "busy" for record in host.log()) == 2)
    assert host.ask("kill")["seconds"] < 4
    assert eventually(lambda: [process.name() for process in world.processes()] == ["host"], 5)
