"""What hatchling adds to pyproject.toml: the project's URLs, and README for PyPI, where relative links are dead."""

import posixpath
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(!?)(\[[^]]*\]\()(?!https?:|#)([^)#]+)")


def linked(text: str, repository: str, folder: str = "", kept: Container[str] = ()) -> str:
    """Return this Markdown with links to the repository in place of relative ones, except to files in `kept`.

    folder: where the text is, seen from the project's folder, as are the paths in `kept`.
    """

    def absolute(link: re.Match[str]) -> str:
        image, opening, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        return link[0] if path in kept else f"{image}{opening}{repository}/{'raw' if image else 'blob'}/HEAD/{path}"

    return RELATIVE_LINK.sub(absolute, text)


class Hook(MetadataHookInterface):
    """hatchling finds it by its base class."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the fields that pyproject.toml calls dynamic."""
        repository = self.config["repository"]
        metadata["urls"] = {
            "Repository": repository,
            "Documentation": f"{repository}/blob/HEAD/docs/guide.md",
            "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": linked(readme, repository)}
