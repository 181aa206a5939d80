"""The examples, as people copy them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, World

import docs

HOSTS = ROOT / ".hosts"  # `make hosts` builds them here


class Example:
    """A copy of an example, made by the first two commands of its README, with its classes renamed."""

    def __init__(self, name: str, folder: Path) -> None:
        """folder: an empty folder."""
        self.name = name
        project = folder / "project"
        skipped = shutil.ignore_patterns(".venv", ".git", ".hosts", ".windows", "bench", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, project, ignore=skipped)
        (project / ".venv").symlink_to(sys.prefix)
        new, cd, *_ = self.typed(docs.console_blocks(f"examples/{name}/README.md")[0]).splitlines()
        subprocess.run(["sh", "-e", "-c", new], cwd=project, check=True)
        self.folder = (project / cd.removeprefix("cd ")).resolve()
        self.plugin = f"{self.folder.name}_plugin.py"
        if name in ("grafana", "terraform"):  # terraform's framework needs an older protobuf
            subprocess.run(["make", ".venv/developing"], cwd=self.folder, check=True)
        else:
            (self.folder / ".venv").symlink_to(sys.prefix)
            os.utime(self.folder / "pyproject.toml", (0, 0))  # older than what is installed
        source = self.folder / ("notes_provider.py" if name == "terraform" else self.plugin)
        text = source.read_text()
        classes = re.findall(r"^class (\w+)\(", text, re.MULTILINE)
        for class_name in classes if name == "terraform" else classes[-1:]:
            text = re.sub(rf"(?<!\.)\b{class_name}\b", f"My{class_name}", text)
        source.write_text(text)

    @staticmethod
    def names() -> list[str]:
        """The names of all examples."""
        return sorted(path.name for path in (ROOT / "examples").iterdir())

    @staticmethod
    def group(name: str) -> Any:
        """The mark for tests that use the same copy: one pytest process runs them all, and makes the copy once."""
        return pytest.mark.xdist_group(f"example {name}")

    def console_blocks(self) -> list[str]:
        """The console blocks of its README."""
        return docs.console_blocks(self.folder / "README.md")

    @staticmethod
    def typed(block: str) -> str:
        """The commands in the block, which people type."""
        return "\n".join(line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))

    @staticmethod
    def shown(block: str) -> str:
        """The output in the block."""
        return "".join(line + "\n" for line in block.splitlines() if not line.startswith("$ "))

    def run(self, world: World, commands: str, code: int = 0, **options: Any) -> str:
        """Run the commands in one shell, in the copy, and return what they print. No process may be left afterwards."""
        world.env.pop("PYTHONPATH", None)  # the copy needs nothing of the project
        world.env["PYTEST_ADDOPTS"] = f"--basetemp={world.folder / 'pytest'}"  # pytest leaves this folder behind
        process = world.run("sh", "-e", "-c", commands, **{"cwd": self.folder, **options})
        out, err = process.communicate()
        said = f"{commands}\n{out.decode()}\n{err.decode()}"
        assert process.returncode == code, said
        assert not world.processes(), said
        return out.decode()


def programs(*names: str) -> list[Any]:
    """Hosts as parameters of a test; it skips hosts that are missing."""
    found = []
    for name in names:
        built = HOSTS / name
        path = str(built) if built.exists() else shutil.which(name)
        reason = f"{name} is not there: `make hosts` builds all but vault and terraform, `make hosts HOSTS=vault` vault"
        found.append(pytest.param(path, id=name, marks=[pytest.mark.skipif(not path, reason=reason)]))
    return found


def load(file: str) -> Any:
    """The module in a file below examples/."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / "examples" / file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Serving:
    """An HTTP server that serves in a thread until close()."""

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def writer_of(pipe: Path) -> int:
    """A descriptor to write to the pipe; 0 while nobody has opened it for reading."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0
