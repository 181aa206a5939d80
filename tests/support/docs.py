"""README and docs/ for the tests, which type the commands shown there and compare the output."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
FILES += sorted(path for folder in ("docs", "examples/*", "bench") for path in ROOT.glob(f"{folder}/*.md"))


def console_blocks(*names: str | Path) -> list[str]:
    """The console blocks of these documents, in order; by default of README and docs/guide.md."""
    text = "".join((ROOT / name).read_text() for name in names or ("README.md", "docs/guide.md"))
    return re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def console_block(part: str) -> str:
    """The one console block that contains this text."""
    (block,) = (block for block in console_blocks() if part in block)
    return block
