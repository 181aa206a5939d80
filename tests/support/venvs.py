"""Venvs of other Pythons, with other packages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs import ROOT


def supported() -> list[str]:
    """The Python versions in pyproject.toml, oldest first."""
    classifier = r"Programming Language :: Python :: (3\.\d+)"
    return re.findall(classifier, (ROOT / "pyproject.toml").read_text())


def pythons() -> dict[str, str]:
    """This machine's Pythons from 3.10 on: an executable for each minor version."""
    found = {}
    for minor in range(10, 30):
        if sys.version_info[:2] == (3, minor):
            found[f"3.{minor}"] = sys.executable
            continue
        name = f"python3.{minor}"
        pyenv = sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/*/bin/{name}"))
        fetched = f"{sys.prefix}/{name}/bin/{name}"  # python.sh puts it there
        for candidate in filter(None, [shutil.which(name), *map(str, pyenv), shutil.which(fetched)]):
            # pyenv's own python3.12 fails unless pyenv has selected that version.
            if subprocess.run([candidate, "-c", "import venv"], check=False, capture_output=True).returncode == 0:
                found[f"3.{minor}"] = candidate
                break
    return found


def lower_ends() -> list[str]:
    """The lowest versions that requirements.txt allows, as constraints for pip."""
    text = (ROOT / "requirements.txt").read_text()
    return [f"{name}=={version}" for name, version in re.findall(r"^([\w-]+)>=([\d.]+)$", text, re.MULTILINE)]


def make(folder: Path, python: str = sys.executable) -> Path:
    """Make an empty venv; return the path of its Python."""
    uv("venv", "--python", python, folder)
    return folder / "bin" / "python"


def install(python: Path, *arguments: str | Path) -> None:
    """Install as `pip install` does. CalledProcessError, with the output, if that fails."""
    uv("pip", "install", "--compile-bytecode", "--python", python, *arguments)


def uv(*arguments: str | Path) -> None:
    """Run uv, which needs one second where pip needs twenty."""
    subprocess.run([Path(sys.executable).parent / "uv", "--quiet", *arguments], check=True, capture_output=True)
