"""Each example, by the commands of its README: copied into an empty folder, changed, tested, and run by its host."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from harness import ROOT, World

EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir())
# Run by go-plugin's own hosts, which `go run` gets.
WITH_OWN_HOST = ["asyncio", "bidirectional", "minimal", "negotiated", "streaming"]


def console_blocks(name: str) -> list[str]:
    text = (ROOT / "examples" / name / "README.md").read_text()
    return re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(world: World, commands: str, cwd: Path) -> str:
    """Run them in one shell; what they print."""
    process = world.run("sh", "-e", "-c", commands, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, f"{commands}\n{out.decode()}\n{err.decode()}"
    return out.decode()


def typed(block: str) -> str:
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))


def copied(world: World, name: str) -> Path:
    """The folder that the README's first two commands make, with a class renamed, and what is installed already."""
    project = world.folder / "project"
    skipped = shutil.ignore_patterns(".venv", ".git", ".hosts", "demo", "bench", "__pycache__", ".*_cache", ".cache")
    shutil.copytree(ROOT, project, ignore=skipped)
    make, cd, *_ = typed(console_blocks(name)[0]).splitlines()
    run(world, make, project)
    folder = (project / cd.removeprefix("cd ")).resolve()
    (folder / ".venv").symlink_to(sys.prefix)
    for file in ("requirements.txt", "requirements-dev.txt"):
        os.utime(folder / file, (0, 0))
    plugin = (folder / "plugin.py").read_text()
    servicer = re.findall(r"^class (\w+)\(", plugin, re.MULTILINE)[0]
    (folder / "plugin.py").write_text(re.sub(rf"(?<!\.)\b{servicer}\b", f"My{servicer}", plugin))
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_readme(world: World, name: str) -> None:
    """Its first commands make and test a copy. The next ones run it with go-plugin's host, and print what they show."""
    del world.env["PYTHONPATH"]
    world.env["PYTEST_ADDOPTS"] = f"--basetemp={world.folder / 'pytest'}"  # pytest leaves that behind
    folder = copied(world, name)
    own, *with_host = console_blocks(name)
    said = run(world, "\n".join(typed(own).splitlines()[2:]), folder)
    assert re.search(r"= \d+ passed in", said)
    run(world, "make types", folder)
    if name in WITH_OWN_HOST:
        shown = "".join(line + "\n" for line in with_host[0].splitlines() if not line.startswith("$ "))
        assert run(world, typed(with_host[0]), folder).split() == shown.split()
