"""goplugin as a distribution: a plugin without a copy of it works, however goplugin is installed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import kv
import pytest
import venvs
from harness import ROOT, SUPPORT, CallError, Host, World, eventually

import goplugin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("install")]  # pip may take long

WAYS = {
    "folder": lambda built: [built / "source"],
    "extra": lambda built: [f"{built / 'source'}[reflection]"],
    "editable": lambda built: ["--editable", built / "source"],
    "wheel": lambda built: list(built.glob("*.whl")),
    "sdist": lambda built: list(built.glob("*.tar.gz")),
}


@pytest.fixture
def plugin(world: World) -> Path:
    """plugin.py and its service, without goplugin."""
    for path in (ROOT / "plugin.py", *ROOT.glob("kv_pb2*.py")):
        shutil.copy(path, world.folder)
    del world.env["PYTHONPATH"]
    return world.folder / "plugin.py"


def test_what_is_in_the_wheel_and_the_sdist(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    version = goplugin.__version__
    assert wheel.name == f"goplugin-{version}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"goplugin", f"goplugin-{version}.dist-info"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "goplugin").rglob("*.*") if "__pycache__" not in path.parts}
    brought = {name for name in names if name.startswith("goplugin/template/")}
    assert {name for name in names if name.startswith("goplugin/")} - brought == ours
    metadata = zipfile.ZipFile(wheel).read(f"goplugin-{version}.dist-info/METADATA").decode()
    asked = {re.sub(r"; extra ==.*", "", line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)}
    assert asked == set(re.findall(r"^[a-z].*$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    (sdist,) = built.glob("*.tar.gz")
    listed = subprocess.run(["tar", "tzf", sdist], check=True, capture_output=True, text=True).stdout.splitlines()
    inside = {name.partition("/")[2] for name in listed}
    assert ours < inside
    assert {name.removeprefix("goplugin/template/") for name in brought} < inside
    assert [name for name in inside if name.startswith(("tests", "bench", "docs"))] == ["tests/test_plugin.py"]


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_what_pip_wheel_leaves(built: Path, tmp_path: Path) -> None:
    """README's command: git does not see the wheel, and `make clean` removes it."""
    project = tmp_path / "project"
    shutil.copytree(built / "source", project)
    for command in ("git init -q", "git add .", f"{sys.executable} -m pip wheel -q --no-deps --no-build-isolation ."):
        subprocess.run(command.split(), cwd=project, check=True)
    assert len(list(project.glob("*.whl"))) == 1
    status = subprocess.run(["git", "status", "-s"], cwd=project, check=True, capture_output=True, text=True).stdout
    assert not [line for line in status.splitlines() if not line.startswith("A ")]
    subprocess.run(["make", "clean"], cwd=project, check=True)
    assert not list(project.glob("*.whl"))


def logs(host: Host, text: str) -> bool:
    return any(text in record["@message"] for record in host.log())


@pytest.mark.parametrize("way", WAYS)
def test_a_plugin_finds_what_is_installed(world: World, plugin: Path, built: Path, tmp_path: Path, way: str) -> None:
    python = venvs.make(tmp_path / "venv")
    venvs.install(python, "-c", ROOT / "constraints.txt", *WAYS[way](built))
    assert not (plugin.parent / "goplugin").exists()
    for auto_mtls in (False, True):
        host = world.started(plugin, python=python, auto_mtls=auto_mtls)
        kv.put(host, way, b"a value")
        assert kv.get(host, way) == b"a value" + kv.SUFFIX
        names = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        if way == "extra":
            host.call(names, b"")
        else:
            with pytest.raises(CallError, match="Unimplemented"):
                host.call(names, b"")
            assert eventually(partial(logs, host, "pip install grpcio-reflection"))
        assert host.ask("kill")["seconds"] < 1.9


def test_by_pip_beside_protobuf_5(world: World, plugin: Path, built: Path, tmp_path: Path) -> None:
    """pip itself installs it in a project that another package keeps on protobuf 5."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "protobuf<6", built / "source"], check=True)
    host = world.started(plugin, python=python, auto_mtls=True)
    kv.put(host, "a", b"b")
    assert kv.get(host, "a") == b"b" + kv.SUFFIX


def test_in_one_file_by_shiv(world: World, plugin: Path, built: Path, tmp_path: Path) -> None:
    venvs.uv("pip", "install", "--python", sys.executable, "--target", tmp_path / "build", built / "source")
    for path in plugin.parent.glob("*.py"):
        shutil.copy(path, tmp_path / "build")
    shiv = [Path(sys.executable).parent / "shiv", "-e", "plugin:main", "-o", "kv.pyz", "--site-packages", "build"]
    subprocess.run([str(part) for part in shiv], cwd=tmp_path, check=True)
    world.env["SHIV_ROOT"] = str(tmp_path / "shiv")
    host = world.started(tmp_path / "kv.pyz", start_timeout=60)
    kv.put(host, "a", b"b")
    assert kv.get(host, "a") == b"b" + kv.SUFFIX


def test_its_types_are_found(built: Path, tmp_path: Path) -> None:
    python = venvs.make(tmp_path / "venv")
    venvs.install(python, "-c", ROOT / "constraints.txt", built / "source")
    script = tmp_path / "script.py"
    script.write_text("import goplugin\nworkers: goplugin.Workers = goplugin.Workers(2)\ncount: int = workers.drain\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), str(script)]
    run = subprocess.run(mypy, check=False, cwd=tmp_path, capture_output=True, text=True)
    (error, _) = run.stdout.splitlines()
    assert error.startswith("script.py:3: error: Incompatible types")


GREETER_TEST = """
import sys

import goplugin.testing
import greeter_pb2
import greeter_pb2_grpc
from greeter_plugin import HANDSHAKE


def test_greet():
    with goplugin.testing.start([sys.executable, "greeter_plugin.py"], HANDSHAKE, auto_mtls=True) as plugin:
        stub = greeter_pb2_grpc.GreeterStub(plugin.channel)
        assert stub.Greet(greeter_pb2.Person(name="world")).text == "Good day, world"
    assert plugin.exit_code == 0
"""


def test_from_a_new_folder_to_what_is_shipped(built: Path, tmp_path: Path) -> None:
    """In a project on protobuf 5, without Go: install goplugin, write a plugin, test it, check it, ship it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("make", "sh", "find", "xargs", "rm", "cp", "mv", "touch", "sed", "mkdir", "env"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    env |= {"PATH": str(tools), "SHIV_ROOT": str(tmp_path / "shiv"), "PIP_FIND_LINKS": str(built)}
    folder = tmp_path / "greeter"

    def run(*command: str, cwd: Path = folder, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "goplugin", "new", str(folder), cwd=ROOT)
    project = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(project.replace('dependencies = ["', 'dependencies = ["protobuf<6", "'))
    for path in folder.glob("kv*"):
        path.unlink()
    shutil.copy(SUPPORT / "template" / "greeter.proto", folder)
    shutil.copy(SUPPORT / "template" / "plugin.py", folder / "greeter_plugin.py")
    (folder / "tests" / "test_plugin.py").write_text(GREETER_TEST)
    run("make", f"PYTHON={sys.executable}", "protos")
    assert "1 passed" in run("make", "test")
    assert run(".venv/bin/python", "-c", "from google import protobuf; print(protobuf.__version__)").startswith("5.")

    check = (".venv/bin/python", "-m", "goplugin", "check", "--cookie", "GREETER_PLUGIN=good day", "--versions", "5,6")
    right = (folder / "greeter_plugin.py").read_text()
    (folder / "greeter_plugin.py").write_text(right.replace('set("plugin"', 'set("plug-in"'))
    assert 'no answer for "plugin"' in run(*check, "--", ".venv/bin/python", "greeter_plugin.py", fails=True)
    (folder / "greeter_plugin.py").write_text(right)
    run(*check, "--", ".venv/bin/python", "greeter_plugin.py")

    (folder / "launcher").write_text('#!/bin/sh\nexec .venv/bin/python greeter_plugin.py "$@"\n')
    (folder / "launcher").chmod(0o755)
    run(*check, "--", "./launcher")
    run(*check, "--", ".venv/bin/greeter")
    run(".venv/bin/pip", "install", "-q", "shiv")
    run(".venv/bin/pip", "install", "-q", "--target", "build", ".")
    run(
        ".venv/bin/shiv",
        "--site-packages",
        "build",
        "-p",
        sys.executable,
        "-e",
        "greeter_plugin:main",
        "-o",
        "greeter.pyz",
    )
    run(*check, "--", "./greeter.pyz")
