"""`python -m goplugin new` and `protos` need only a wheel and an empty folder, not even make."""

import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import kv
import pytest
import venvs
from harness import ROOT, World

import docs
import goplugin

BIN = "Scripts" if sys.platform == "win32" else "bin"
WITH_TESTS = sorted(path.parent.parent.name for path in ROOT.glob("examples/*/tests/test_plugin.py"))


def run(*command: str | Path, cwd: Path, fails: bool = False, **env: str | Path) -> str:
    """Run the command with none of the project's variables but those in `env`; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "PIP"))}
    options: Any = {"cwd": cwd, "env": {**inherited, **{name: str(value) for name, value in env.items()}}}
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, **options)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return str(done.stderr if fails else done.stdout)


def new(folder: Path, *arguments: str | Path, fails: bool = False) -> str:
    """Run `new` from the source in this folder; return what it prints."""
    return run(sys.executable, "-m", "goplugin", "new", *arguments, cwd=folder, fails=fails, PYTHONPATH=ROOT)


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv whose path has spaces; pip has installed the wheel there."""
    folder = tmp_path_factory.mktemp("nothing but Python")
    run(sys.executable, "-m", "venv", "venv", cwd=folder)
    python = folder / "venv" / BIN / "python"
    run(python, "-m", "pip", "install", "-q", "pip>=25.1", next(built.glob("*.whl")), cwd=folder)
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("copy", [(), ("--copy",)], ids=["depends", "copy"])
def test_by_pip(world: World, built: Path, python: Path, tmp_path: Path, copy: tuple[str, ...]) -> None:
    """`new` needs no network, make or git. A Go host runs the new plugin; its tests and linters pass."""
    folder = tmp_path / "my plugins" / "notes"
    folder.parent.mkdir()
    said = run(
        python, "-m", "goplugin", "new", "notes", *copy, cwd=folder.parent, PATH="", https_proxy="http://[::1]:9"
    )
    assert "2. In notes_plugin.py, replace KVServicer" in said
    assert (folder / "goplugin").exists() == bool(copy)
    assert not (folder / "goplugin" / "template").exists()
    del world.env["PYTHONPATH"]
    if copy:
        assert "is a copy" in run(python, "-m", "goplugin", "new", "x", cwd=folder, fails=True)
        run(python, "-m", "pip", "uninstall", "-q", "-y", "goplugin", cwd=folder)
    try:
        for auto_mtls in (False, True):
            host = world.started(folder / "notes_plugin.py", python=python, auto_mtls=auto_mtls)
            kv.put(host, "k", b"v")
            assert kv.get(host, "k") == b"v" + kv.SUFFIX
        run(python, "-m", "pip", "install", "-q", "-e", ".", "--group", "dev", cwd=folder, PIP_FIND_LINKS=built)
        installed = world.started(cmd=[str(python.parent / "notes")])
        assert kv.get(installed, "k") == b"v" + kv.SUFFIX
        for command, result in COMMANDS.items():
            assert result in run(python, "-m", *command.split(), cwd=folder), command
    finally:
        run(python, "-m", "pip", "uninstall", "-q", "-y", "notes", cwd=folder)
        run(python, "-m", "pip", "install", "-q", "--no-deps", next(built.glob("*.whl")), cwd=folder)


@pytest.mark.windows
@pytest.mark.skipif(
    sys.platform != "win32", reason="test_by_pip covers this in a venv, which Python under Wine cannot make"
)
def test_by_pip_on_windows(world: World, built: Path, tmp_path: Path) -> None:
    library, project = tmp_path / "library", tmp_path / "project"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target")
    run(*pip, library, next(built.glob("*.whl")), cwd=tmp_path)
    run(sys.executable, "-m", "goplugin", "new", "notes", cwd=tmp_path, PYTHONPATH=library)
    run(*pip, project, tmp_path / "notes", cwd=tmp_path)
    world.env["PYTHONPATH"] = f"{library}{os.pathsep}{project}"
    for auto_mtls in (False, True):
        host = world.started(cmd=[str(project / "bin" / "notes.exe")], auto_mtls=auto_mtls)
        kv.put(host, "k", b"v")
        assert kv.get(host, "k") == b"v" + kv.SUFFIX
        assert host.ask("kill")["seconds"] < 4


COMMANDS = {
    "goplugin protos": "Generated the code for kv.proto",
    "pytest": "4 passed",
    "ruff check": "All checks passed",
    "ruff format --check": "already formatted",
    "mypy": "Success",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", ["", "asyncio", *WITH_TESTS])
def test_by_uv(built: Path, tmp_path: Path, example: str) -> None:
    """uv gets the path of the wheel, because a registry may have no goplugin, or an older one."""
    uv = Path(sys.executable).parent / "uv"
    env: dict[str, Any] = {"UV_FIND_LINKS": built, "UV_PYTHON": sys.executable}
    (wheel,) = built.glob("*.whl")
    options = ["--from", example] if example else []
    run(uv, "tool", "run", "--from", wheel, "goplugin", "new", "a", *options, "--name", "My.Notes", cwd=tmp_path, **env)
    folder = tmp_path / "a"
    run(uv, "sync", cwd=folder, **env)
    if (folder / "fetch.py").exists():
        run(uv, "run", "python", "fetch.py", cwd=folder, **env)
    if example != "terraform":
        run(uv, "run", "python", "-m", "goplugin", "protos", cwd=folder, **env)
    for command in ("pytest", "ruff check", "ruff format --check", "mypy"):
        run(uv, "run", *command.split(), cwd=folder, **env)
    programs = {"grafana": "gpx_", "terraform": "terraform-provider-", "tflint": "tflint-ruleset-"}
    program = programs.get(example, "") + "My.Notes"
    assert example != "grafana" or json.loads((folder / "plugin.json").read_text())["executable"] == program
    said = run(folder / ".venv" / BIN / program, cwd=folder, fails=True)
    assert "its host starts it" in said
    run(uv, "build", "-q", "--wheel", cwd=folder, **env)
    python = venvs.make(tmp_path / "other")
    run(uv, "pip", "install", "--python", python, *(folder / "dist").glob("*.whl"), cwd=tmp_path, **env)
    assert run(tmp_path / "other" / BIN / program, cwd=tmp_path, fails=True) == said
    (project,) = (folder / "dist").glob("*.whl")
    others = [name for name in zipfile.ZipFile(project).namelist() if not re.match(r"my_notes[_-]|.*_pb2", name)]
    assert not others  # other packages might have files of these names, too


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_readme_tells_a_person_to_type(world: World, built: Path, tmp_path: Path) -> None:
    """README's commands lead from an empty folder to a plugin that a Go host uses."""
    commands = docs.console_block("uvx").replace("$ ", "").replace("/folder/of/the/wheel", str(built))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert "4 passed" in run("sh", "-e", "-c", commands, cwd=tmp_path, PATH=path, UV_PYTHON=sys.executable)
    host = world.started(cmd=[str(tmp_path / "notes" / ".venv" / BIN / "notes")])
    kv.put(host, "k", b"v")
    assert kv.get(host, "k") == b"v" + kv.SUFFIX


@pytest.mark.slow
def test_the_wheel_of_the_sdist_is_the_same(built: Path, tmp_path: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    shutil.unpack_archive(sdist, tmp_path)
    (source,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=source, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.windows
@pytest.mark.parametrize("example", ["", "asyncio", "bidirectional"])
def test_options_fill_in_what_the_host_wants(world: World, tmp_path: Path, example: str) -> None:
    new(
        tmp_path, "a", "--name", "Greeter.One-plugin", "--cookie", r"GREETER=good \day=", "--protocol-version", "5",
        "--protocol-version", "6", *(["--from", example] if example else []),
    )  # fmt: skip
    plugin = tmp_path / "a" / "greeter_one_plugin.py"
    if example == "bidirectional":
        run(sys.executable, "-m", "goplugin", "protos", cwd=tmp_path / "a", PYTHONPATH=ROOT)
    for tool in ("ruff check", "ruff format --check"):
        run(sys.executable, "-m", *tool.split(), cwd=tmp_path / "a")
    host = world.host(plugin, cookie=("GREETER", r"good \day="), versions=[4, 5, 6])
    assert host.ask("start")["version"] == 6
    assert 'name = "Greeter.One-plugin"' in (tmp_path / "a" / "pyproject.toml").read_text()


@pytest.mark.parametrize("host", ["vault-database", "nomad"])
def test_a_host_is_known_by_name(tmp_path: Path, host: str) -> None:
    """`new` knows the host, and so does `check`, which finds nothing wrong."""
    new(tmp_path, "a", "--host", host)
    plugin = tmp_path / "a" / "a_plugin.py"
    checked = (sys.executable, "-m", "goplugin", "check", "--host", host, "--", sys.executable, plugin)
    said = run(*checked, cwd=tmp_path, PYTHONPATH=ROOT)
    assert {line.split()[0] for line in said.splitlines()} == {"ok"}
    assert ("AutoMTLS: starts" in said, "ok      starts" in said) == (host != "nomad", host == "nomad")


@pytest.mark.windows
@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (["--host", "opentofu"], "terraform"),
        (["--host", "grafana"], "grafana"),
        (["--host", "vault", "--from", "vault"], "vault"),
    ],
)
def test_a_host_has_its_example(tmp_path: Path, arguments: list[str], example: str) -> None:
    new(tmp_path, "a", *arguments)
    (handshake,) = HANDSHAKE.findall((ROOT / "examples" / example / "plugin.py").read_text())
    assert HANDSHAKE.findall((tmp_path / "a" / "a_plugin.py").read_text()) == [handshake]


HANDSHAKE = re.compile(r"HandshakeConfig\(.*?\)", re.DOTALL)
WRONG = {
    "no folder": ([], "DIR"),
    "a file": (["file"], "exists already"),
    "below a file": (["file/notes"], "cannot write the project: "),
    "not empty": (["full"], "exists already"),
    "a space in the name": (["my notes"], "'my notes' cannot be the project's name: choose one with --name"),
    "a digit first": (["a", "--name", "2fast"], "cannot be the project's name"),
    "not ASCII": (["a", "--name", "größe"], "cannot be the project's name"),
    "the library's name": (["goplugin"], "cannot be the project's name"),
    "what pytest takes for a test": (["test"], "cannot be the project's name"),
    "an example that is not there": (["a", "--from", "nothing"], "--from is one of asyncio, bidirectional, "),
    "a path instead of an example": (["a", "--from", "../examples/vault"], "--from is one of asyncio, "),
    "a cookie without a value": (["a", "--cookie", "KEY"], "--cookie needs KEY=VALUE"),
    "an empty cookie": (["a", "--cookie", ""], "--cookie needs KEY=VALUE"),
    "a version that is no number": (["a", "--protocol-version", "v5"], "--protocol-version"),
    "a host that is not known": (["a", "--host", "podman"], "invalid choice: 'podman' (choose from"),
    "a host and a cookie": (["a", "--host", "nomad", "--cookie", "K=V"], "not allowed with"),
    "another host's example": (["a", "--host", "nomad", "--from", "vault"], "vault has its own cookie and versions"),
    "versions of an example": (["a", "--host", "vault", "--protocol-version", "4"], "has its own cookie and versions"),
    "a cookie for Terraform": (["a", "--from", "terraform", "--cookie", "K=V"], "has its own cookie and versions"),
}


@pytest.mark.windows
@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    arguments, message = WRONG[mistake]
    (tmp_path / "full").mkdir()
    for file in ("file", "full/mine"):
        (tmp_path / file).write_text("mine")
    assert message in new(tmp_path, *arguments, fails=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]


@pytest.mark.windows
def test_this_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a folder" / "notes"
    folder.mkdir(parents=True)
    new(folder, ".")
    assert (folder / "notes_plugin.py").exists()
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert not [word for word in ("PROJECT_NAME", "PROGRAM_NAME", "MODULE_PREFIX", '"DE') if word in text]


@pytest.mark.windows
def test_the_commands(tmp_path: Path) -> None:
    goplugin = (sys.executable, "-m", "goplugin")
    listed = run(*goplugin, cwd=tmp_path, PYTHONPATH=ROOT).splitlines()
    assert [line.split()[3] for line in listed] == ["new", "protos", "check", "versions"]
    for line in listed:
        assert f"usage: {line.partition('  ')[0].strip()} " in run(
            *goplugin, line.split()[3], "-h", cwd=tmp_path, PYTHONPATH=ROOT
        )
    assert "Unknown command 'knew'." in run(*goplugin, "knew", cwd=tmp_path, PYTHONPATH=ROOT, fails=True)


@pytest.mark.windows
def test_versions(tmp_path: Path) -> None:
    said = run(sys.executable, "-m", "goplugin", "versions", cwd=tmp_path, PYTHONPATH=ROOT).splitlines()
    python = sys.version.split()[0]
    assert said[:3] == [f"goplugin {goplugin.__version__}", f"CPython {python}", f"grpcio {grpc.__version__}"]
    assert f"protobuf {version('protobuf')}" in said
    assert f"cryptography {version('cryptography')}" in said
    assert said[-2:] == [ssl.OPENSSL_VERSION, platform.platform()]


@pytest.mark.slow
def test_versions_say_what_is_missing(built: Path, tmp_path: Path) -> None:
    python = venvs.make(tmp_path / "venv")
    venvs.install(python, "grpcio", "grpcio-health-checking", "protobuf")
    venvs.install(python, "--no-deps", next(built.glob("*.whl")))
    said = run(python, "-m", "goplugin", "versions", cwd=tmp_path).splitlines()
    missing = [line.split()[0] for line in said if line.endswith(" is not installed")]
    assert missing == ["grpcio-reflection", "cryptography", "pygrpc-native"]


def protos(folder: Path, *, fails: bool = False) -> str:
    return run(sys.executable, "-m", "goplugin", "protos", cwd=folder, PYTHONPATH=ROOT, fails=fails)


# The .proto files, each with what it imports, and one of the modules that `protos` generates from them.
LAYOUTS: dict[str, tuple[dict[str, str], str]] = {
    "one folder": ({"a.proto": ""}, "a_pb2_grpc"),
    "folders": ({"a.proto": "", "one/b.proto": "a.proto", "one/two/c.proto": "one/b.proto"}, "one.two.c_pb2_grpc"),
    "buf's": ({"proto/notes/v1/a.proto": "", "proto/notes/v1/b.proto": "notes/v1/a.proto"}, "notes.v1.b_pb2_grpc"),
    "go-plugin's": ({"proto/kv.proto": ""}, "proto.kv_pb2_grpc"),
    "a folder called proto": ({"proto/a.proto": "", "b.proto": "proto/a.proto"}, "b_pb2_grpc"),
}


@pytest.mark.windows
@pytest.mark.parametrize("layout", LAYOUTS)
def test_protos_generates_what_can_be_imported(tmp_path: Path, layout: str) -> None:
    """`protos` skips the files of goplugin, of tests and of a venv of any name."""
    files, module = LAYOUTS[layout]
    others = ("goplugin/services/x.proto", "tests/y.proto", ".venv/z.proto", "env/lib/z.proto", "build/lib/a.proto")
    for name in (*files, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        imported = f'import "{files[name]}";' if files.get(name) else ""
        text = f'syntax = "proto3"; package {Path(name).stem}; {imported} message M {{}} service S {{}}'
        (tmp_path / name).write_text(text)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    protos(tmp_path)
    stems = [name.removesuffix(".proto").removeprefix("proto/" if layout == "buf's" else "") for name in files]
    generated = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*_pb2*")}
    assert generated == {stem + end for stem in stems for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")}
    run(sys.executable, "-c", f"import {module}", cwd=tmp_path)


def test_protos_says_what_is_wrong(tmp_path: Path) -> None:
    assert "there is no .proto file in this folder" in protos(tmp_path, fails=True)
    (tmp_path / "a.proto").write_text("syntax = 'proto3'; message A { B b = 1; }")
    assert 'a.proto:1:32: "B" is not defined.' in protos(tmp_path, fails=True)
