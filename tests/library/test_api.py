"""api.txt lists the public names and signatures: they do not change by accident, and new ones go on the list.

`python tests/library/test_api.py` writes api.txt.
"""

import ast
import difflib
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests" / "library" / "api.txt"
MODULES = ("goplugin", "goplugin.aio", "goplugin.testing")
# These have no underscore because other modules of goplugin use them. They are not for plugins, and may change.
INTERNAL = {
    "Accepted": {"__init__", "listen", "stop"},
    "Broker": {
        "__init__", "StartStream", "announce", "call_later", "close", "end_streams", "fail", "fail_later", "forget",
        "hosts", "infos", "keep", "lock",
    },
    "Client": {"__init__", "cancel_at_end", "close", "connect", "error", "start"},
    "HandshakeConfig": {"check", "choose_version"},
    "Plugin": {"leave_to_parent"},
}  # fmt: skip
CHANGED = """
The public names and signatures are not those of tests/library/api.txt. If you did not mean to change them, undo that:
plugins depend on them. If you did, write the list again, and a line about it in CHANGELOG.md:

    .venv/bin/python tests/library/test_api.py

"""


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The signature as in the source, without `self`, so that it is the same in each version of Python."""
    arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    returned = f" -> {ast.unparse(function.returns)}" if function.returns and function.name != "__init__" else ""
    return f"({arguments}){returned}"


def members(cls: type) -> Iterator[tuple[str, str]]:
    """The names that goplugin defines in a class and its bases, each with the text that follows it in the list."""
    for base in cls.__mro__:
        if not base.__module__.startswith("goplugin"):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for part in node.body:
            if isinstance(part, ast.AsyncFunctionDef):
                yield part.name, f"{signature(part)} (async)"
            elif isinstance(part, ast.FunctionDef) and part.decorator_list:
                assert [ast.unparse(decorator) for decorator in part.decorator_list] == ["property"], part.name
                assert part.returns, part.name
                yield part.name, f": {ast.unparse(part.returns)}"
            elif isinstance(part, ast.FunctionDef):
                yield part.name, signature(part)
            elif isinstance(part, ast.AnnAssign):
                default = f" = {ast.unparse(part.value)}" if part.value else ""
                yield ast.unparse(part.target), f": {ast.unparse(part.annotation)}{default}"
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                yield inner.target.attr, f": {ast.unparse(inner.annotation)}"
            elif (
                isinstance(inner, ast.Attribute)
                and ast.unparse(inner.value) == "self"
                and isinstance(inner.ctx, ast.Store)
            ):
                yield inner.attr, ""


def public() -> Iterator[str]:
    """The lines of the list."""
    for module_name in MODULES:
        __import__(module_name)
        module = sys.modules[module_name]
        for name in sorted(module.__all__):
            value: Any = getattr(module, name)
            path = f"{module_name}.{name}"
            if inspect.isclass(value):
                found: dict[str, str] = {}
                for member, rest in members(value):
                    if member not in INTERNAL.get(name, ()):
                        found.setdefault(member, rest)
                yield f"class {path}{found.pop('__init__', '')}"
                yield from (f"{path}.{member}{rest}" for member, rest in found.items() if not member.startswith("_"))
            elif inspect.isfunction(value):
                (node,) = ast.parse(inspect.getsource(value)).body
                assert isinstance(node, ast.FunctionDef)
                yield path + signature(node)
            else:
                yield f"{path}: {type(value).__name__}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "1000", "NO_COLOR": "1"}
    goplugin = (sys.executable, "-m", "goplugin")
    listed = subprocess.run(goplugin, env=env, check=True, capture_output=True, text=True).stdout
    for command in [line.split()[3] for line in listed.splitlines()]:
        said = subprocess.run([*goplugin, command, "-h"], env=env, check=True, capture_output=True, text=True).stdout
        yield said.partition("\n")[0].removeprefix("usage: ")


def test_public_names_and_signatures_stay() -> None:
    lines = list(public())
    difference = list(difflib.unified_diff(LIST.read_text().splitlines(), lines, "api.txt", "now", lineterm="", n=0))
    assert not difference, CHANGED + "\n".join(difference)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    LIST.write_text("".join(f"{line}\n" for line in public()))
