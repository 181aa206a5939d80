"""The ruleset of examples/tflint, under tflint."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import World, eventually

from examples import Example, programs, writer_of

pytestmark = [
    Example.group("tflint"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("tflint")),
]

WAITS = """
def check(runner, *, fix):
    _log.warning("waits", extra={"fix": fix})
    open("waits").read()
"""


@pytest.fixture
def ruleset(world: World, copies: Callable[[str], Example], host: str) -> Iterator[Example]:
    """The example, prepared as its README says, with its files in the world's folder."""
    example = copies("tflint")
    example.run(world, "make protos")
    shutil.copytree(example.folder / "example", world.folder / "ruleset" / "example")
    for name in ("ruleset_plugin.py", ".venv", "goplugin", "tflint_pb2.py", "tflint_pb2_grpc.py"):
        (world.folder / "ruleset" / name).symlink_to(example.folder / name)
    world.env["PATH"] = f"{Path(host).parent}:{world.env['PATH']}"
    yield example
    for path in world.temporary.iterdir():
        if path.is_socket():  # a socket of tflint's broker: tflint may exit before it has removed it
            path.unlink()


def test_what_the_readme_shows(world: World, ruleset: Example, host: str) -> None:
    """The ruleset asks tflint, reports issues, and fixes them."""
    _, with_host, *_ = ruleset.console_blocks()
    said = ruleset.run(world, ruleset.typed(with_host), cwd=world.folder / "ruleset")
    assert said.split() == ruleset.shown(with_host).split()


def test_the_log_and_what_users_disable(world: World, ruleset: Example, host: str) -> None:
    prepare = "\n".join(ruleset.typed(ruleset.console_blocks()[1]).splitlines()[:4])
    ruleset.run(world, prepare, cwd=world.folder / "ruleset")
    folder = world.folder / "ruleset" / "example"
    disabled = ruleset.run(world, "tflint --disable-rule=notes_lower_case_name", cwd=folder)
    assert not disabled
    said = ruleset.run(world, "TFLINT_LOG=info tflint --fix 2>&1", 2, cwd=folder)
    assert re.search(r"\[INFO\] .*tflint-ruleset-notes: fixing: .*files=", said)
    assert not re.search(r"\[(ERROR|WARN)\] .*tflint-ruleset-notes", said)


def test_the_ruleset_leaves_when_tflint_is_killed(world: World, ruleset: Example, host: str) -> None:
    """A Check is in flight, and waits for a pipe that nobody writes to."""
    prepare = "\n".join(ruleset.typed(ruleset.console_blocks()[1]).splitlines()[:4])
    ruleset.run(world, prepare, cwd=world.folder / "ruleset")
    folder = world.folder / "ruleset"
    source = (folder / "ruleset_plugin.py").read_text()
    (folder / "ruleset_plugin.py").unlink()
    (folder / "ruleset_plugin.py").write_text(source.replace("\ndef main()", f"{WAITS}\n\ndef main()"))
    os.mkfifo(folder / "example" / "waits")
    tflint = world.run(host, cwd=folder / "example")
    writer = eventually(lambda: writer_of(folder / "example" / "waits"))
    assert writer
    tflint.kill()
    assert world.gone()
    os.close(writer)
