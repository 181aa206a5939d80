"""plugin.py, tested by a host in Python, without Go and tflint: the test serves Runner, as tflint does."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tflint_pb2 as pb
import tflint_pb2_grpc

import goplugin.testing
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"
FILE = b'one = "Hello"\ntwo = "Wide, Wide World"\nthree = "fine"\nfour = "X${var.y}"\n'


class Runner(tflint_pb2_grpc.RunnerServicer):
    """A module with a file, each line of which is the `name` of a resource."""

    def __init__(self, *path: str) -> None:
        self.path = path
        self.issues: list[str] = []
        self.changes: dict[str, bytes] = {}

    def GetModulePath(self, request: Any, context: Any) -> pb.GetModulePath.Response:
        return pb.GetModulePath.Response(path=self.path)

    def GetModuleContent(self, request: Any, context: Any) -> pb.GetModuleContent.Response:
        content = pb.BodyContent()
        for line in FILE.splitlines():
            start = FILE.index(line) + line.index(b'"')
            where = pb.Range(filename="main.tf", start={"byte": start}, end={"byte": FILE.index(line) + len(line)})
            block = content.blocks.add(type="resource", labels=["notes_note", line.split()[0].decode()])
            expression = pb.Expression(bytes=FILE[where.start.byte : where.end.byte], range=where)
            block.body.attributes["name"].CopyFrom(pb.BodyContent.Attribute(name="name", expression=expression))
        return pb.GetModuleContent.Response(content=content)

    def GetFiles(self, request: Any, context: Any) -> pb.GetFiles.Response:
        return pb.GetFiles.Response(files={"main.tf": FILE})

    def EmitIssue(self, request: Any, context: Any) -> pb.EmitIssue.Response:
        self.issues.append(request.message)
        return pb.EmitIssue.Response(applied=True)

    def ApplyChanges(self, request: Any, context: Any) -> pb.ApplyChanges.Response:
        self.changes.update(request.changes)
        return pb.ApplyChanges.Response()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    with goplugin.testing.start([sys.executable, str(PLUGIN)], HANDSHAKE, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0


def check(client: goplugin.testing.Client, runner: Runner, **config: Any) -> None:
    """Have the ruleset check a module, as tflint does."""
    ruleset: Any = tflint_pb2_grpc.RuleSetStub(client.channel)
    ruleset.ApplyGlobalConfig(pb.ApplyGlobalConfig.Request(config=pb.ApplyGlobalConfig.Config(**config)))
    number = client.broker.next_id()
    client.broker.accept(number, lambda server: tflint_pb2_grpc.add_RunnerServicer_to_server(runner, server))
    ruleset.Check(pb.Check.Request(runner=number))


def test_issues(client: goplugin.testing.Client) -> None:
    runner = Runner()
    check(client, runner)
    assert runner.issues == ['"Hello" should be in lower case', '"Wide, Wide World" should be in lower case']
    assert not runner.changes


def test_fix(client: goplugin.testing.Client) -> None:
    runner = Runner()
    check(client, runner, fix=True)
    fixed = FILE.replace(b"Hello", b"hello").replace(b"Wide, Wide World", b"wide, wide world")
    assert runner.changes == {"main.tf": fixed}
    runner = Runner("module", "child")
    check(client, runner, fix=True)
    assert len(runner.issues) == 2
    assert not runner.changes


@pytest.mark.parametrize(
    ("config", "issues"),
    [
        ({"disabled_by_default": True}, 0),
        ({"disabled_by_default": True, "only": ["notes_lower_case_name"]}, 2),
        ({"only": ["another"]}, 0),
        ({"rules": {"notes_lower_case_name": {"name": "notes_lower_case_name", "enabled": False}}}, 0),
    ],
)
def test_what_the_user_wants(client: goplugin.testing.Client, config: dict[str, Any], issues: int) -> None:
    runner = Runner()
    check(client, runner, **config)
    assert len(runner.issues) == issues
