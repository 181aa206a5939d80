"""Each example by the commands of its README: copy it into an empty folder, change it, test it, run it under its host.

test_grafana.py, test_terraform.py, test_tflint.py and test_vault.py test what else these hosts ask of a plugin.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from harness import ROOT, World

from examples import Example

EACH = [pytest.param(name, marks=Example.group(name)) for name in Example.names()]
QUICK = ("asyncio", "minimal")  # the others generate code, or install many packages
EACH_README = [
    pytest.param(name, marks=[Example.group(name), *([pytest.mark.slow] * (name not in QUICK))])
    for name in Example.names()
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EACH_README)
def test_the_readme(world: World, name: str, copies: Callable[[str], Example]) -> None:
    """README's first commands make and test a copy. The next ones run it under its host, with the output in README."""
    example = copies(name)
    own, with_host, *_ = example.console_blocks()
    said = example.run(world, "\n".join(example.typed(own).splitlines()[2:]))
    assert re.search(r"= \d+ passed in", said)
    if "go run" in with_host:  # it downloads go-plugin's own hosts
        assert example.run(world, example.typed(with_host)).split() == example.shown(with_host).split()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EACH)
def test_the_types(world: World, name: str, copies: Callable[[str], Example]) -> None:
    example = copies(name)
    generate = "make protos && " if "make protos" in example.console_blocks()[0] else ""
    example.run(world, f"{generate}.venv/bin/mypy")


def test_text_files_have_an_encoding() -> None:
    """open() without an encoding would use the machine's."""
    rule = ["--preview", "--select", "PLW1514"]
    subprocess.run([sys.executable, "-m", "ruff", "check", *rule, "examples", "starter"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "file"),
    [("grafana", "backend.proto"), ("tflint", "tflint.proto"), ("vault", "plugin/pb/backend.proto")],
)
def test_protos_of_other_projects_without_go(world: World, name: str, file: str) -> None:
    subprocess.run(["make", "new", f"DIR={world.folder / name}", f"FROM={name}"], cwd=ROOT, check=True)
    paths = world.env["PATH"].split(os.pathsep)
    world.env["PATH"] = os.pathsep.join(path for path in paths if not shutil.which("go", path=path))
    protos = world.run("make", "--old-file=.venv/developing", "protos", cwd=world.folder / name)
    said = protos.communicate()[1].decode()
    assert f"Go fetches {file}" in said
    assert "there is none: install it (https://go.dev/dl), or put " in said
    assert protos.returncode == 2
