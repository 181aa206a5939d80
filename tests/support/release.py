"""`make release`: build a release into dist/ and try it, but neither tag nor upload it.

It builds the last commit, twice. Both builds must have the same bytes, so that anyone can build again and compare.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import venvs

from docs import ROOT

UV = Path(sys.executable).parent / "uv"


def run(*command: str | Path, cwd: Path = ROOT, umask: int = -1, **env: str) -> str:
    """Run the command and return its stdout. If it fails, exit with its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options: Any = {"cwd": cwd, "umask": umask, "env": {**inherited, **env}}
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nNo release: this has failed: {shlex.join(map(str, command))}")
    return str(done.stdout)


def ready() -> str:
    """The version. Exits if the tree is not ready for a release."""
    if changed := run("git", "status", "--porcelain"):
        sys.exit(f"No release: commit what is here, or remove it; git status says:\n{changed}")
    (version,) = re.findall('^__version__ = "(.*)"$', (ROOT / "goplugin" / "version.py").read_text(), re.MULTILINE)
    heading, _, text = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")[2].partition("\n")
    if not re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading):
        sys.exit(
            f"No release: goplugin/version.py says {version}, but the first section of CHANGELOG.md is {heading!r}."
            f" It must be '## {version} - YYYY-MM-DD'."
        )
    if not re.search(r"^- ", text.partition("\n## ")[0], re.MULTILINE):
        sys.exit(f"No release: the section {heading!r} of CHANGELOG.md is empty. Say there what users notice.")
    tag, here = f"v{version}", run("git", "tag", "--points-at", "HEAD", "v*").split()
    if here and tag not in here:
        sys.exit(f"No release: this commit has the tag {here[0]}, but goplugin/version.py says {version}.")
    if run("git", "tag", "--list", tag) and not here:
        sys.exit(f"No release: another commit has the tag {tag}. Raise the version in goplugin/version.py.")
    return str(version)


def build(folder: Path, umask: int) -> list[Path]:
    """Build the sdist and the wheel of the last commit in this folder."""
    run("git", "checkout-index", "--all", f"--prefix={folder}/source/", umask=umask)
    date = run("git", "log", "-1", "--format=%ct").strip()
    command = (sys.executable, "-m", "hatchling", "build", "-d", folder)
    run(*command, cwd=folder / "source", umask=umask, SOURCE_DATE_EPOCH=date)
    return sorted(path for path in folder.iterdir() if path.is_file())


def try_out(file: Path, version: str, python: str, folder: Path) -> None:
    """Install the file in an empty venv, make a project there, and run its tests."""
    folder.mkdir()
    run(UV, "venv", "--python", python, folder / "venv")
    inside = folder / "venv" / "bin" / "python"
    install = (UV, "pip", "install", "--find-links", file.parent, "--python", inside)
    run(*install, file)
    run(inside, "-m", "goplugin", "new", "notes", cwd=folder)
    run(*install, "--editable", folder / "notes", "--group", folder / "notes" / "pyproject.toml:dev")
    run(inside, "-m", "pytest", cwd=folder / "notes")
    if f"goplugin {version}\n" not in (said := run(inside, "-m", "goplugin", "versions", cwd=folder)):
        sys.exit(f"{said}\nNo release: {file.name} installs another version than {version}.")


def main() -> None:
    """Make the release, and say what is left to do."""
    version = ready()
    here = venvs.pythons()
    pythons = [python for python in venvs.supported() if python in here]
    with tempfile.TemporaryDirectory(prefix="release") as temporary:
        print(f"Building goplugin {version}, twice ...", flush=True)
        files = build(Path(temporary, "one"), 0o022)
        for file, again in zip(files, build(Path(temporary, "another"), 0o077), strict=True):
            if file.read_bytes() != again.read_bytes():
                sys.exit(f"No release: {file.name} had other bytes when it was built again, in another folder.")
        run(UV, "tool", "run", "-c", ROOT / "constraints.txt", "twine", "check", "--strict", *files)
        for python in dict.fromkeys((pythons[0], pythons[-1])):
            for file in files:
                print(f"Trying {file.name} in a new project, on Python {python} ...", flush=True)
                try_out(file, version, here[python], Path(temporary, f"{python} {file.suffix}"))
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        for file in files:
            shutil.copy(file, ROOT / "dist")
            print(f"dist/{file.name}  sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}")
    if missing := {venvs.supported()[0], venvs.supported()[-1]} - set(pythons):
        print(f"Not tried: Python {' and '.join(sorted(missing))}, which is not here.")
    print("Left to do, when all tests have passed on this commit (release.yml then does this again, and uploads it):")
    if "OWNER/REPOSITORY" in (ROOT / "pyproject.toml").read_text():
        print("  fill in the repository's address in pyproject.toml, for PyPI; commit; make release")
    print(f'  git tag -a v{version} -m "goplugin {version}"')
    print(f"  git push origin v{version}")


if __name__ == "__main__":
    main()
