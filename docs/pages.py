"""Gives mkdocs its pages: the documents where they are, and a reference made from docstrings."""

import posixpath
import re
from pathlib import Path

from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hatch_build import linked

ROOT = Path(__file__).parent.parent
SHOWN = ("*.md", "docs/*.md", "docs/*.svg", "bench/*.md", "bench/*.svg", "examples/*/README.md")


def reference() -> str:
    """Return the page of the public names. tests/library/api.txt lists them, each class before its members."""
    text = "# API\n"
    names = (ROOT / "tests" / "library" / "api.txt").read_text(encoding="utf-8")
    for is_class, owner, name in re.findall(r"^(class )?(goplugin[\w.]*)\.(\w+)", names, re.MULTILINE):
        if re.search(r"\.[A-Z]\w*$", owner):  # a class
            text += f"        - {name}\n"
            continue
        if f"## {owner}\n" not in text:
            text += f"\n## {owner}\n"
        text += f"\n::: {owner}.{name}\n"
        if is_class:
            text += "    options:\n      members:\n"
    return text


def on_config(config: MkDocsConfig) -> None:
    """Set the repository's address, which pyproject.toml has."""
    config.repo_url = ProjectMetadata(str(ROOT), PluginManager()).core.urls["Repository"]
    config.repo_name = "Repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the files of the whole project in place of those of docs/, with their paths: so their links fit."""
    paths = sorted(path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in ROOT.glob(pattern))
    ours = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    themes = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*themes, *ours, File.generated(config, "docs/api.md", content=reference())])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files that are not pages lead to the repository. Dead ones stay, for mkdocs to find."""

    def kept(path: str) -> bool:
        return path in files.src_uris or not (ROOT / path).exists()

    return linked(markdown, str(config.repo_url), "HEAD", posixpath.dirname(page.file.src_uri), kept)


def on_page_content(html: str, **_: object) -> str:
    """Remove a backslash that code needs in tables on GitHub: Python's Markdown shows it."""
    return html.replace(r"\|", "|")
