"""Questions of an author's first month: the documents answer each one, at most two links away from README."""

import re
from pathlib import Path

import pytest

from docs import ROOT

# The question; the document and heading with the answer; words of the answer.
QUESTIONS = [
    ("What does a plugin look like?", "README.md#a-go-plugin-plugin-in-python", "plugin.listen(server)"),
    ("My host starts it, and nothing happens.", "README.md#a-go-plugin-plugin-in-python", "goplugin check"),
    ("How do I start one of my own?", "README.md#start-your-own", "goplugin new notes"),
    ("And without uv?", "docs/guide.md#a-project-of-your-own", "pip install -e . --group dev"),
    ("How do I add my own .proto files?", "docs/guide.md#a-project-of-your-own", "python -m goplugin protos"),
    ("How do I upgrade goplugin?", "docs/guide.md#a-project-of-your-own", "pip install --upgrade goplugin"),
    ("Which magic cookie does my host set?", "docs/hosts.md#what-hosts-expect", "VAULT_BACKEND_PLUGIN="),
    ("What does this error of my host mean?", "docs/protocol.md#it-does-not-start", "goplugin: BdbQuit"),
    ("How do I log?", "docs/guide.md#logging", "PLUGIN_LOG_LEVEL"),
    ("Where does print go?", "docs/guide.md#printing", "SyncStdout"),
    ("How do I debug it?", "docs/guide.md#debugging", "python plugin.py --debug"),
    ("How do I test it without Go?", "docs/testing.md#testing-a-plugin-without-go", "goplugin.testing.start("),
    ("How do I get a connection of the broker?", "docs/guide.md#the-broker", "plugin.broker.dial(id)"),
    ("Do I have to write anything for AutoMTLS?", "docs/guide.md#automtls", "without a line of yours"),
    ("How do I handle a caller that leaves?", "docs/guide.md#when-a-caller-leaves", "context.add_callback("),
    ("Why is it DEADLINE_EXCEEDED after some days?", "docs/guide.md#when-a-caller-leaves", "DEADLINE_EXCEEDED"),
    ("Threads or asyncio?", "docs/guide.md#asyncio", "If in doubt, choose threads"),
    ("May I start child processes?", "docs/guide.md#if-your-plugin-starts-other-processes", "ProcessPoolExecutor"),
    ("How do I ship it, where there is no Python?", "docs/guide.md#shipping-it", "pyinstaller --onefile"),
    ("Does it work on Windows?", "docs/guide.md#windows", r".venv\Scripts\pip install"),
    ("How long do I have to clean up?", "docs/guide.md#when-the-plugin-leaves", "1.5 s"),
    ("Who can call my plugin?", "SECURITY.md#security", "other users of the machine"),
    ("Which file of goplugin do I change?", "docs/architecture.md#which-file-to-change", "`services/controller.py`"),
]  # fmt: skip


def sections(document: Path) -> dict[str, str]:
    """The text under each heading, by the name that links use."""
    text = re.sub(r"(?ms)^```.*?^```$", lambda code: code[0].replace("\n#", "\n #"), document.read_text())
    _, *parts = re.split(r"(?m)^#+ (.*)$", text)
    names = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in parts[::2]]
    return dict(zip(names, parts[1::2], strict=True))


def linked(documents: set[Path]) -> set[Path]:
    """These documents, and the documents that they link to."""
    links = [
        (document.parent / target).resolve()
        for document in documents
        for target in re.findall(r"\]\((?!https://)([^)#]+\.md)", document.read_text())
    ]
    return documents.union(links)


@pytest.mark.parametrize(("question", "where", "answer"), QUESTIONS, ids=[question for question, *_ in QUESTIONS])
def test_it_has_an_answer(question: str, where: str, answer: str) -> None:
    name, _, heading = where.partition("#")
    document = ROOT / name
    assert document in linked(linked({ROOT / "README.md"})), f"README does not lead to {name}"
    assert answer in sections(document)[heading], question
