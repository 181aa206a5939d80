"""README's `make new` and the copy's "Make it yours", done literally: another service, and a Go host that calls it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, SUPPORT, CallError, World

from docs import console_block

pytestmark = pytest.mark.xdist_group("template")  # one process runs these tests, and makes the copy once

TEMPLATE = SUPPORT / "template"


@pytest.fixture(scope="module")
def copied(programs: Path) -> Path:
    """The folder that README's commands make, with the test's service in it."""
    project = programs / "project"
    skipped = shutil.ignore_patterns(".venv", ".git", ".hosts", ".windows", "demo", "__pycache__", ".*_cache", ".cache")
    shutil.copytree(ROOT, project, ignore=skipped)
    (project / ".venv").symlink_to(sys.prefix)
    block = console_block("make protos")
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    # README tells a person to edit files by hand after the copy, before `make protos`; the test does it here.
    before = commands.index("make protos")
    run = ["sh", "-e", "-c"]
    subprocess.run([*run, "\n".join(commands[:before])], cwd=project, check=True)
    for path in (programs / "greeter").glob("kv*"):
        path.unlink()
    shutil.copy(TEMPLATE / "greeter.proto", programs / "greeter")
    shutil.copy(TEMPLATE / "plugin.py", programs / "greeter" / "greeter_plugin.py")
    # Use the installed packages; the old time of pyproject.toml makes `make` accept them.
    (programs / "greeter" / ".venv").symlink_to(sys.prefix)
    os.utime(programs / "greeter" / "pyproject.toml", (0, 0))
    subprocess.run([*run, "\n".join(commands[before:])], cwd=programs / "greeter", check=True)
    return programs / "greeter"


@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
def test_another_service(world: World, copied: Path, auto_mtls: bool) -> None:
    sys.path.insert(0, str(copied))
    try:
        import greeter_pb2
    finally:
        sys.path.remove(str(copied))
    del world.env["PYTHONPATH"]  # it needs nothing of the project that it was copied from
    host = world.host(
        copied / "greeter_plugin.py", cookie=("GREETER_PLUGIN", "good day"), versions=[6, 4], auto_mtls=auto_mtls
    )
    assert host.ask("start")["version"] == 6
    greeting = host.call("/greeter.Greeter/Greet", greeter_pb2.Person(name="world"), greeter_pb2.Greeting)
    assert greeting.text == "Good day, world"
    host.ask("open", stream=1, method="/greeter.Greeter/Countdown")
    host.ask("send", stream=1, message=greeter_pb2.Person(name="x", number=3).SerializeToString())
    host.ask("half_close", stream=1)
    texts = [greeter_pb2.Greeting.FromString(host.ask("recv", stream=1)["message"]).text for _ in range(3)]
    assert texts == ["3, x", "2, x", "1, x"]
    host.ask("accept", broker=7)
    request = greeter_pb2.Person(name="from the host", number=7)
    assert host.call("/greeter.Greeter/GreetHost", request, greeter_pb2.Greeting).text == "from the host"
    with pytest.raises(CallError, match="Unimplemented"):
        host.call("/proto.KV/Get", b"")
    assert host.ask("kill")["seconds"] < 1.9


def test_nothing_of_the_key_value_store_is_left(copied: Path) -> None:
    """Only plugin.py, kv.proto, its generated code, the tests, benchmark and README mention the key-value store."""
    names = {path.name for path in copied.iterdir()} - {".venv", "__pycache__"}
    assert names == {
        ".github", ".gitignore", "Makefile", "README.md", "goplugin", "greeter.proto", "greeter_pb2.py",
        "greeter_pb2.pyi", "greeter_pb2_grpc.py", "greeter_plugin.py", "pyproject.toml", "tests", "venv.mk",
    }  # fmt: skip
    for path in [copied / "Makefile", copied / "pyproject.toml", *(copied / "goplugin").glob("*.p*")]:
        assert not re.search(r"\bkv|key-value", path.read_text(), re.IGNORECASE), path


@pytest.fixture(params=["", "FROM=asyncio"], ids=["threads", "asyncio"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder that `make new` makes, with the packages that are already installed."""
    subprocess.run(["make", "new", f"DIR={tmp_path / 'new'}", *filter(None, [request.param])], cwd=ROOT, check=True)
    assert ("asyncio" in (tmp_path / "new" / "new_plugin.py").read_text()) == bool(request.param)
    (tmp_path / "new" / ".venv").symlink_to(sys.prefix)
    os.utime(tmp_path / "new" / "pyproject.toml", (0, 0))
    return tmp_path / "new"


@pytest.mark.parametrize(
    "installed", [pytest.param(False, id="copied", marks=pytest.mark.slow), pytest.param(True, id="installed")]
)
def test_each_command_works_in_a_new_folder(new: Path, tmp_path: Path, installed: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (new / "tests" / "test_example.py").write_text(example.replace("notes_plugin", "new_plugin"))
    if installed:  # goplugin is not a copy here but elsewhere on the path, as in an editable installation
        (new / "goplugin").rename(tmp_path / "goplugin")
        env["PYTHONPATH"] = str(tmp_path)
    said = subprocess.run(["make"], cwd=new, env=env, check=True, capture_output=True, text=True).stdout
    commands = re.findall(r"^make ([a-z]+)  ", said, re.MULTILINE)
    assert commands == ["test", "lint", "protos", "clean"]
    for command in commands:
        run = subprocess.run(["make", command], cwd=new, env=env, check=False, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        assert {"test": "5 passed", "lint": "Success"}.get(command, "") in run.stdout
    assert not (new / ".venv").exists()
    assert (Path(sys.prefix) / "bin" / "python").exists()  # `make clean` has removed only the link


def test_a_type_error_of_the_plugin_is_found(new: Path) -> None:
    with (new / "new_plugin.py").open("a") as file:
        file.write("number: int = HANDSHAKE\n")
    run = subprocess.run(["make", "lint"], cwd=new, check=False, capture_output=True, text=True)
    assert "Incompatible types in assignment" in run.stdout


def test_new_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    run = subprocess.run(["make", "new", f"DIR={tmp_path}"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode != 0
    assert "exists already" in run.stderr
    run = subprocess.run(["make", "new"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert "Say where: make new DIR=" in run.stderr
    command = ["make", "new", f"DIR={tmp_path / 'new'}", "FROM=nothing"]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert "--from is one of asyncio, " in run.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("way", ["spaces", "shebang", "absolute", "sh", "hostile folder", "PYTHONPATH"])
def test_however_it_is_started(world: World, way: str) -> None:
    """From a path with spaces, as an executable, from another folder, by a shell, beside a wrong grpc.py."""
    folder = world.folder / ("a folder with spaces" if way == "spaces" else "plugin")
    folder.mkdir()
    for name in ("plugin.py", "kv_pb2.py", "kv_pb2_grpc.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "goplugin", folder / "goplugin", ignore=shutil.ignore_patterns("__pycache__"))
    del world.env["PYTHONPATH"]
    command = [sys.executable, str(folder / "plugin.py")]
    if way == "shebang":
        world.env["PATH"] = f"{Path(sys.executable).parent}:{world.env['PATH']}"
        command = [str(folder / "plugin.py")]
    elif way == "sh":
        command = ["sh", "-c", f"{sys.executable} plugin/plugin.py"]
    elif way == "hostile folder":
        for name in ("grpc", "goplugin", "json", "kv_pb2"):
            (world.folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    elif way == "PYTHONPATH":
        hostile = world.folder / "hostile"
        hostile.mkdir()
        (hostile / "kv_pb2.py").write_text("raise SystemExit('the wrong module')\n")
        world.env["PYTHONPATH"] = f":{hostile}"
    host = world.host(cmd=command)
    host.ask("start")
    host.call("/proto.KV/Put", b"\x0a\x01k\x12\x01v")
    assert (world.folder / "kv_k").exists()
