"""The project's files agree: the generated code with the .proto files, and the documents with what happens."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kv
import pytest
import venvs
from harness import ROOT, SUPPORT, World

import goplugin
from docs import FILES, console_block, console_blocks

GENERATED = ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py"]


def test_each_block_of_the_docs_has_its_test() -> None:
    first = [block.splitlines()[0] for block in console_blocks()]
    assert first == [
        "$ export UV_FIND_LINKS=/folder/of/the/wheel",  # test_new.py
        "$ make demo",  # below
        "$ make new DIR=../greeter",  # test_template.py
        "$ python plugin.py --debug registry.terraform.io/me/kv",  # test_debug.py
        "$ . .venv/bin/activate",  # test_shipping.py
    ]


def test_what_must_pass_is_what_readme_says() -> None:
    said = (ROOT / "README.md").read_text()
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make docs", "make test", "make test-all", "make windows"]
    assert all(f"`{command}`" in said for command in commands)


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    versions = venvs.supported()
    assert versions
    oldest, newest = versions[0], versions[-1]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert re.findall(r"^ +python: (\[.*\])$", workflow, re.MULTILINE) == [json.dumps(versions)]
    assert f"tested on Linux with Python {oldest} to {newest}" in (ROOT / "README.md").read_text()
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text()
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert re.findall(r"^ +(3\.\d+)$", release, re.MULTILINE) == [oldest, newest]
    assert re.findall(r"python(3\.\d+)\b", (SUPPORT / "python.sh").read_text())[0] == newest


def test_the_version_is_the_same_everywhere() -> None:
    headings = re.findall(r"^## (\S+)(?: - \d{4}-\d\d-\d\d)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == goplugin.__version__


def test_links_of_readme_work_on_pypi_too(built: Path) -> None:
    """README's links use the repository's address, which stands in one place."""
    archive = zipfile.ZipFile(next(built.glob("*.whl")))
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    repository = urls["Repository"]
    targets = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert not [target for target in targets if not target.startswith("https://")]
    paths = [
        re.match(rf"{repository}/(?:blob|raw)/(?:HEAD|v{re.escape(goplugin.__version__)})/([^#]+)", target)
        for target in (*targets, *urls.values())
    ]
    assert len([path for path in paths if path]) > 10
    assert not [path[1] for path in paths if path and not (ROOT / path[1]).exists()]
    files = [ROOT / "pyproject.toml", *FILES, *(path for path in ROOT.glob(".github/**/*") if path.is_file())]
    assert "".join(path.read_text() for path in files).count(repository) == 1


@pytest.mark.slow
def test_constraints_fit_each_python() -> None:
    """They fit each system, too; otherwise `make` could not install the same packages on the oldest Python."""
    files = [ROOT / name for name in ("requirements.txt", "tests/requirements.txt", "docs/requirements.txt")]
    oldest = venvs.supported()[0]
    venvs.uv("pip", "compile", "--universal", "--python-version", oldest, "-c", ROOT / "constraints.txt", *files)


def test_the_plugin_in_readme(world: World) -> None:
    """README's plugin works unchanged, and its four steps are lines of plugin.py."""
    (text,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (world.folder / "readme.py").write_text(text)
    for auto_mtls in (False, True):
        assert kv.get(world.started(world.folder / "readme.py", auto_mtls=auto_mtls), "hello") == b"world"
    steps = re.sub(r"  #.*", "", text[text.index("server = ") :]).splitlines()
    assert set(steps) <= {line.strip() for line in (ROOT / "plugin.py").read_text().splitlines()}
    assert re.findall(r"# (\d)\. ", text) == ["1", "2", "3", "4"]


def test_sed_is_that_of_every_system() -> None:
    """Only GNU sed knows \\t in a pattern. On other systems a folder's name was empty for that reason, so it was /."""
    files = [*ROOT.glob("Makefile"), *ROOT.glob("*.mk"), *ROOT.glob("examples/*/*.mk"), *SUPPORT.glob("*.sh")]
    patterns = [pattern for file in files for pattern in re.findall(r"sed -n '([^']*)'", file.read_text())]
    assert len(patterns) == 2
    assert not any(re.search(r"\\[a-z]", pattern) for pattern in patterns)


@pytest.mark.slow
def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    """The old generator makes it, because that code runs with every protobuf that requirements.txt allows."""
    (tmp_path / "goplugin" / "services").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "venv.mk", tmp_path)
    for proto in ("kv.proto", "goplugin/services/host.proto"):
        shutil.copy(ROOT / proto, tmp_path / proto)
    old = [python for version, python in venvs.pythons().items() if version in ("3.10", "3.11", "3.12")]
    if not old:
        pytest.skip("the old generator has no wheels for the Pythons of this machine")
    subprocess.run(["make", f"PYTHON={old[0]}", "own-protos"], cwd=tmp_path, check=True)
    for stem in ("kv", "goplugin/services/host"):
        for ending in GENERATED:
            assert (ROOT / (stem + ending)).read_text() == (tmp_path / (stem + ending)).read_text()


@pytest.mark.slow
def test_a_venv_that_works_is_used_as_it_is(tmp_path: Path) -> None:
    """For example uv's, without pip. make keeps a venv after a failed installation, not after an interrupted one."""
    shutil.copy(ROOT / "venv.mk", tmp_path / "Makefile")
    venvs.make(tmp_path / ".venv")
    own = tmp_path / ".venv" / "own"
    own.touch()

    def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["make", *arguments, ".venv/running"]
        # If make runs these tests, its variables would reach the make below.
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        return subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)

    requirements = tmp_path / "requirements.txt"
    requirements.write_text("iniconfig<0\n")
    failed = make()
    assert failed.returncode != 0
    assert "No matching distribution found for iniconfig" in failed.stderr
    requirements.write_text("iniconfig\n")
    assert make().stdout == "Installing -r requirements.txt: the first time about half a minute ...\n"
    subprocess.run([tmp_path / ".venv" / "bin" / "python", "-c", "import iniconfig"], check=True)
    assert make().stdout == "make: '.venv/running' is up to date.\n"
    assert own.exists()
    (tmp_path / ".venv" / "running").rename(tmp_path / ".venv" / "interrupted")
    assert "(an installation was interrupted)" in make(f"PYTHON={sys.executable}").stdout
    assert not own.exists()
    assert {path.name for path in (tmp_path / ".venv").iterdir()} >= {"bin", "running"}


def test_demo_prints_what_readme_shows(world: World) -> None:
    """The demo runs in a copy of the project, with the packages that are already installed."""
    skipped = shutil.ignore_patterns(".venv", ".git", ".hosts", ".windows", "demo", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, world.folder, ignore=skipped, dirs_exist_ok=True)
    (world.folder / ".venv").symlink_to(Path(sys.prefix))
    demo = world.run("make", "--no-print-directory", "--old-file=.venv/running", "demo")
    out, err = demo.communicate()
    assert demo.returncode == 0, err.decode()
    shown = console_block("$ make demo\n")
    assert out.decode() == shown.removeprefix("$ make demo\n")
    assert (world.folder / "demo" / "kv_hello").read_bytes() == b"world\n\nWritten from plugin-python"
    # If the demo fails, it prints the host's log.
    (world.folder / "plugin.py").write_text("raise SystemExit('this plugin is broken')\n")
    demo = world.run("make", "--old-file=.venv/running", "demo")
    out, err = demo.communicate()
    assert demo.returncode != 0
    assert b"this plugin is broken" in out


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_dead_links(file: Path) -> None:
    """The targets of a document's links, and the project's files that it names, exist."""
    text = re.sub(r"^- go-plugin: .*", "", file.read_text(), flags=re.MULTILINE)
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", text):
        path, _, section = target.partition("#")
        linked = file.parent / path if path else file
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE) if section else []
        assert not section or section in [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings]
    for target in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py|\.proto|\.md|\.txt|/))`", text):
        assert any((folder / target).exists() for folder in (ROOT, ROOT / "goplugin", file.parent)), target


def test_the_table_of_worlds() -> None:
    command = [sys.executable, str(SUPPORT / "worlds.py"), "tests/plugin/test_kv.py", "tests/project/test_shipping.py"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert re.search(r"^tests/plugin/test_kv.py::test_values_are_bytes +x s s s s", run.stdout, re.MULTILINE)
    assert "tests/project/test_shipping.py::test_" in run.stdout


@pytest.mark.xdist_group("a group")
def test_groups(request: pytest.FixtureRequest) -> None:
    """The installed pytest-xdist keeps a group in one process; otherwise each process would make what tests share."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@a group")
