"""The README's "Shipping it", done literally: one executable file, that a Go host starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PLUGINS, ROOT, World, eventually
from kv import SUFFIX, get, put

from docs import console_block

ALSO_WITH_AUTO_MTLS = True

pytestmark = pytest.mark.xdist_group("shipping")  # in one process, which builds what is shipped once


@pytest.fixture(scope="module")
def one_file(programs: Path) -> Path:
    """What README's commands make, in a copy of the project, with the packages that are installed already."""
    project = programs / "shipped"
    skipped = shutil.ignore_patterns(".venv", ".git", "demo", "build", "__pycache__", ".*_cache", ".cache")
    shutil.copytree(ROOT, project, ignore=skipped)
    (project / ".venv").symlink_to(sys.prefix)
    block = console_block("shiv")
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    subprocess.run(["sh", "-e", "-c", "\n".join(commands)], cwd=project, check=True)
    shutil.rmtree(project / "build")  # it needs nothing but itself
    return project / "kv.pyz"


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
    for _ in range(2):  # the second time it is unpacked already
        host.ask("start")
        put(host, "k", b"v")
        assert get(host, "k") == b"v" + SUFFIX
        assert host.ask("kill")["seconds"] < 1.9
        host = world.host(cmd=[str(started)])
    host.ask("start")
    host.process.kill()  # and the plugin leaves too, or the test fails


@pytest.fixture(scope="module")
def without_python(programs: Path) -> Path:
    """plugin.py with workers, as PyInstaller makes one file of it."""
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
@pytest.mark.plain_only("the workers know nothing of it")
@pytest.mark.parametrize("way", ["spawn", "forkserver", "fork"])
def test_one_file_of_pyinstallers_with_workers(world: World, without_python: Path, way: str) -> None:
    """The file starts itself for each worker: those are workers, not plugins. They log, and end with the plugin."""
    del world.env["PYTHONPATH"]
    host = world.started(cmd=[str(without_python)])
    pid, left = get(host, way).decode().split(" ", 1)
    assert left == "[]"
    assert host.logged("x" * 20_000, **{"@level": "warn", "@module": "of.a.worker", "pid": int(pid)})
    put(host, "ProcessPoolExecutor", way.encode())
    assert eventually(lambda: sum(record["@message"] == "busy" for record in host.log()) == 2)
    assert host.ask("kill")["seconds"] < 4
    assert eventually(lambda: [process.name() for process in world.processes()] == ["host"], 5)
