"""The README's "Shipping it", done literally: one executable file, that a Go host starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, World
from kv import SUFFIX, get, put

from docs import console_block

ALSO_WITH_AUTO_MTLS = True


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
        assert host.ask("kill")["seconds"] < 1
        host = world.host(cmd=[str(started)])
    host.ask("start")
    host.process.kill()  # and the plugin leaves too, or the test fails
