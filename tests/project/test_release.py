"""`make release`: when it refuses, and what it builds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

import goplugin

pytestmark = pytest.mark.skipif(not (shutil.which("git") and (ROOT / ".git").exists()), reason="no git here")


def git(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **names}
    return subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def release(project: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(project / "tests" / "support" / "release.py")]
    return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit: this project's files as they are now, with CHANGELOG ready for a release."""
    folder = tmp_path / "a project"
    for name in git(ROOT, "ls-files").splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    text = (folder / "CHANGELOG.md").read_text()
    now = f"\n## {goplugin.__version__} - 2026-01-01\n\n- What has changed.\n\n## "
    (folder / "CHANGELOG.md").write_text(text.replace("\n## ", now, 1))
    git(folder, "init", "-q")
    commit(folder)
    return folder


def commit(project: Path) -> None:
    git(project, "add", ".")
    git(project, "commit", "-q", "--allow-empty", "-m", "a commit")


# A file, its new text, whether the test commits it, and the message.
MISTAKES = {
    "a changed file": (
        "plugin.py",
        "x = 1",
        False,
        "commit what is here, or remove it; git status says:\n M ",
    ),
    "a new file": ("new.py", "", False, "git status says:\n?? new.py"),
    "another version": ("goplugin/version.py", '__version__ = "9.8.7"\n', True, "must be '## 9.8.7 - YYYY-MM-DD'."),
    "unreleased changes": ("CHANGELOG.md", "#\n\n## Unreleased\n\n- More.\n", True, "CHANGELOG.md is 'Unreleased'."),
    "an empty section": (
        "CHANGELOG.md",
        "#\n\n## VERSION - 2026-01-01\n\n## 0\n\n- A.\n",
        True,
        "CHANGELOG.md is empty",
    ),
    "no section": ("CHANGELOG.md", "# Changelog\n", True, "the first section of CHANGELOG.md is ''"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_refused(project: Path, mistake: str) -> None:
    name, text, committed, message = MISTAKES[mistake]
    (project / name).write_text(text.replace("VERSION", goplugin.__version__))
    if committed:
        commit(project)
    done = release(project)
    assert done.returncode == 1
    assert done.stderr.startswith("No release: ")
    assert message in done.stderr
    assert not done.stdout


def test_tags(project: Path) -> None:
    git(project, "tag", "v9.8.7")
    assert f"has the tag v9.8.7, but goplugin/version.py says {goplugin.__version__}." in release(project).stderr
    git(project, "tag", "-d", "v9.8.7")
    git(project, "tag", f"v{goplugin.__version__}")
    commit(project)
    assert f"another commit has the tag v{goplugin.__version__}. Raise the version" in release(project).stderr


def test_builds_that_differ(project: Path) -> None:
    settings = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(settings + "\n[tool.hatch.build]\nreproducible = false\n")
    commit(project)
    done = release(project)
    assert done.returncode == 1
    assert re.fullmatch(r"No release: goplugin-\S+ had other bytes .*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_release(project: Path) -> None:
    git(project, "tag", f"v{goplugin.__version__}")  # as in the workflow
    (project / "dist").mkdir()
    (project / "dist" / "goplugin-0.0.1.tar.gz").touch()
    done = release(project)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [f"goplugin-{goplugin.__version__}-py3-none-any.whl", f"goplugin-{goplugin.__version__}.tar.gz"]
    assert sorted(path.name for path in (project / "dist").iterdir()) == names
    assert re.findall(r"^dist/(.*)  sha256:\w{64}$", done.stdout, re.MULTILINE) == names
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_release_whose_new_project_fails(project: Path) -> None:
    plugin = (project / "plugin.py").read_text()
    assert "plugin.wait()" in plugin
    (project / "plugin.py").write_text(plugin.replace("plugin.wait()", "pass"))
    commit(project)
    done = release(project)
    assert done.returncode == 1
    assert "main() ended without plugin.wait()" in done.stderr
    assert done.stderr.endswith("/venv/bin/python' -m pytest\n")
    assert not (project / "dist").exists()
