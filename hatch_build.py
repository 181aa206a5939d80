"""What hatchling adds to pyproject.toml: the project's URLs, and README for PyPI, where relative links are dead."""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(!?)(\[[^]]*\]\()(?!https?:|#)([^)#]+)")


def linked(
    text: str, repository: str, version: str, folder: str = "", kept: Callable[[str], bool] = lambda _: False
) -> str:
    """Return this Markdown with links to the repository in place of relative ones, except where `kept(path)`.

    version: a tag or a branch. folder: where the text is, seen from the project's folder, as is the path.
    """

    def absolute(link: re.Match[str]) -> str:
        image, opening, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        kind = "raw" if image else "blob"
        return link[0] if kept(path) else f"{image}{opening}{repository}/{kind}/{version}/{path}"

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
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = linked(text, repository, f"v{metadata['version']}")  # the tag of a release
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
