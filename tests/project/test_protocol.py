"""docs/protocol.md: the names in it exist, and go-plugin's host prints each error in its lists."""

import ast
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from authors import RIGHT
from certificates import make_certificate
from harness import SUPPORT, CallError, Host, World

from docs import ROOT

DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
PYTHON = f"exec '{sys.executable}'"
LINE = "1|1|tcp|127.0.0.1:1|grpc"
MTLS: dict[str, Any] = {"auto_mtls": True}


def test_what_it_names_is_there() -> None:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "github.com/hashicorp/go-plugin"]
    go_plugin = Path(subprocess.check_output(command, cwd=SUPPORT / "host", text=True).strip())
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCUMENT):
        (path,) = (ROOT / "tests").rglob(file)
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "name")}
        assert name in functions, f"{file} has no {name}"
    sections = re.findall(r"^- go-plugin: (.*?)^(?:- tests: .*?)?$(?=\n)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(sections) == DOCUMENT.count("\n## ") - 1  # all but the errors
    for section in sections:
        theirs, _, ours = section.partition("- here: ")
        for path in re.findall(r"`([\w/]+\.(?:go|proto))`", theirs):
            text = (go_plugin / path).read_text()
            for name in re.findall(rf"`{path}` \(([^)]*)\)", theirs):
                for function in re.findall(r"`(\w+)`", name):
                    assert re.search(rf"^func .*\b{function}\(|^type {function}\b", text, re.MULTILINE), function
        for path in re.findall(r"`(goplugin/[\w/.]*)`", ours):
            assert (ROOT / path).exists(), path


def echo(line: str, then: str = "exec sleep 60") -> str:
    return f"echo '{line}'; {then}"


def script(world: World, text: str) -> str:
    """The command for a plugin with this text."""
    (world.folder / "broken.py").write_text(text)
    return f"{PYTHON} broken.py"


def handler(statement: str) -> str:
    """A plugin whose Get executes the statement."""
    return RIGHT.replace("KVServicer()", "Broken()").replace(
        "plugin = goplugin.Plugin",
        f"class Broken(kv_pb2_grpc.KVServicer):\n    def Get(self, request, context): {statement}\n"
        "plugin = goplugin.Plugin",
    )


def asked(world: World, command: str | list[str], op: str = "start", **config: Any) -> str:
    """The host's error when it starts the command, or else when it does `op`."""
    host = world.host(cmd=["sh", "-c", command] if isinstance(command, str) else command, **config)
    with pytest.raises(CallError) as failure:
        host.ask("start")
        ask(host, op)
    return str(failure.value)


def ask(host: Host, op: str) -> None:
    op, _, argument = op.partition(" ")
    if op == "call":
        host.call(argument, b"")
    elif op == "dial":
        host.ask("dial", broker=int(argument))
    elif op == "put":
        host.call("/proto.KV/Put", b"\x0a\x01k\x12\x80\x80\xc0\x02" + bytes(5 << 20))
    elif op == "nonsense":
        host.call("/proto.KV/Get", b"\xff")
    else:
        host.ask(op)


def logged(world: World, command: str, *ops: str, **config: Any) -> str:
    """The host's log after it has started the command and done each op."""
    host = world.host(cmd=["sh", "-c", command], **config)
    for op in ("start", *ops):
        with contextlib.suppress(CallError):
            host.ask(op)
    host.logged("plugin process exited")
    return str(host.log())


def file(world: World, text: str, mode: int) -> list[str]:
    path = world.folder / "command"
    path.write_text(text)
    path.chmod(mode)
    return [str(path)]


def waits_for_input(world: World, text: str) -> str:
    """The command, with an open stdin: a terminal where nobody types."""
    os.mkfifo(world.folder / "terminal")
    return f"exec 3<>terminal; {script(world, text)} <&3"


def breakpoint_without_a_terminal(world: World) -> str:
    return asked(world, script(world, "import goplugin\nbreakpoint()\n" + RIGHT) + " < /dev/null")


def killed_before_the_ping(world: World) -> str:
    host = world.started()
    world.plugin().kill()
    host.logged("plugin process exited")
    with pytest.raises(CallError) as failure:
        for _ in range(100):  # the first error may only say that the connection broke
            host.ask("ping")
    return str(failure.value)


def with_tls_alone(world: World) -> str:
    own = str(make_certificate(world.folder, "own"))
    return asked(
        world, script(world, RIGHT.replace("(HANDSHAKE", f"(HANDSHAKE, tls=goplugin.TLSFiles(*3 * ['{own}'])")), "ping"
    )


def a_stranger(world: World) -> str:
    host = world.started(**MTLS)
    with pytest.raises(CallError) as failure:
        host.ask("intrude", method="no certificate")
    return str(failure.value)


def attached(world: World, **config: Any) -> str:
    """The host's error when it attaches to a plugin that has ended."""
    address = {"Network": "tcp", "String": "127.0.0.1:1"}
    return asked(world, "", reattach={"Protocol": "grpc", "Pid": 1, "Test": True, "Addr": address}, **config)


def json_that_is_not_hclogs(world: World) -> str:
    host = world.host(cmd=["sh", "-c", "echo '{\"@message\": 1}' >&2; exec sleep 1"])
    with pytest.raises(CallError, match="the host ended"):
        host.ask("start")
    host.close()
    return host.stderr.decode()


MINIMAL = f"{PYTHON} {ROOT}/examples/minimal/plugin.py"
UNGUARDED = RIGHT.replace(
    "grpc.server(**plugin.server_arguments)", "grpc.server(plugin.server_arguments['thread_pool'])"
)
WITHOUT_HEALTH = "\n".join(line for line in RIGHT.splitlines() if "health" not in line)

# The errors in the order of the lists; each function causes one and returns what the host says.
SAID: dict[str, Callable[[World], str]] = {
    "Unrecognized remote plugin message: goplugin: RuntimeError: no config": lambda world: asked(
        world, script(world, "import goplugin\nraise RuntimeError('no config')")
    ),
    "Unrecognized remote plugin message: hello": lambda world: asked(
        world, script(world, "print('hello', flush=True)\n" + RIGHT)
    ),
    "Unrecognized remote plugin message: \nFailed to read any lines": lambda world: asked(world, "kill -9 $$"),
    "timeout while waiting for plugin to start": lambda world: asked(
        world, waits_for_input(world, "import goplugin\nbreakpoint()\n" + RIGHT), start_timeout=2
    ),
    "goplugin: BdbQuit": breakpoint_without_a_terminal,
    "goplugin: the script ended without goplugin.Plugin(HANDSHAKE)": lambda world: (
        asked(world, script(world, "import goplugin\n"))
        if sys.version_info < (3, 14)
        else breakpoint_without_a_terminal(world)
    ),
    "no such file or directory": lambda world: asked(world, ["/no/such/plugin"]),
    "executable file not found in $PATH": lambda world: asked(world, ["no-such-python"]),
    "permission denied": lambda world: asked(world, file(world, "#!/bin/sh\n", 0o600)),
    "exec format error": lambda world: asked(world, file(world, "import goplugin\n", 0o700)),
    "No module named 'goplugin'": lambda world: logged(world, f"{PYTHON} -I {ROOT}/plugin.py"),
    "checksums did not match": lambda world: asked(world, ["/bin/sh"], checksum="AAAA"),
    "incompatible API version with plugin": lambda world: asked(world, f"{PYTHON} {ROOT}/plugin.py", versions=[2]),
    "incompatible core API version with plugin": lambda world: asked(world, echo("2|1|tcp|127.0.0.1:1|grpc")),
    "error parsing core protocol version": lambda world: asked(world, echo("a|b|c|d")),
    'unsupported plugin protocol "netrpc"': lambda world: asked(world, echo("1|1|tcp|127.0.0.1:1")),
    'unsupported plugin protocol "grpc"': lambda world: asked(world, f"{PYTHON} {ROOT}/plugin.py", net_rpc=True),
    "unknown address type": lambda world: asked(world, echo("1|1|pipe|x|grpc")),
    "error parsing server cert": lambda world: asked(world, echo(f"{LINE}|{'x' * 60}"), **MTLS),
    "plugin does not support the feature": lambda world: asked(world, echo(f"{LINE}||false"), multiplex=True),
    "gRPC broker multiplexing is not supported with Reattach config": lambda world: attached(world, multiplex=True),
    "reattachment process not found": attached,
    "connection refused": killed_before_the_ping,
    "error reading from server: EOF": lambda world: asked(
        world, script(world, "import os\n" + handler("os._exit(1)")), "call /proto.KV/Get"
    ),
    "Unimplemented": lambda world: asked(world, f"{PYTHON} {ROOT}/plugin.py", "call /KV/Get"),
    "Unimplemented: Method not found!": lambda world: asked(world, script(world, WITHOUT_HEALTH), "ping"),
    "NotFound": lambda world: asked(world, script(world, RIGHT.replace('"plugin"', '"plugins"')), "ping"),
    "Unknown: Exception calling application: no config": lambda world: asked(
        world, script(world, handler("raise RuntimeError('no config')")), "call /proto.KV/Get"
    ),
    "must return a proto.GetResponse, but returned a NoneType": lambda world: asked(
        world, script(world, handler("pass")), "call /proto.KV/Get"
    ),
    "Exception deserializing request!": lambda world: asked(world, f"{PYTHON} {ROOT}/plugin.py", "nonsense"),
    "tls: first record does not look like a TLS handshake": lambda world: asked(world, MINIMAL, "ping", **MTLS),
    "error reading server preface": with_tls_alone,
    "x509: certificate signed by unknown authority": lambda world: asked(
        world, f"'{sys.executable}' {ROOT}/plugin.py | sed -u 's/grpc.*/grpc/'", "ping", **MTLS
    ),
    "tls: certificate required": a_stranger,
    "timeout waiting for connection info": lambda world: asked(world, f"{PYTHON} {ROOT}/plugin.py", "dial 99"),
    "Received message larger than max": lambda world: asked(world, script(world, UNGUARDED), "put"),
    "plugin failed to exit gracefully": lambda world: logged(world, f"sleep 3 & {MINIMAL}", "kill"),
    "received EOF, stopping recv loop": lambda world: logged(world, MINIMAL, "kill"),
    "error encountered while scanning stdout": lambda world: logged(
        world, echo(LINE, "head -c 70000 /dev/zero | tr '\\0' x"), "kill"
    ),
    "panic: interface conversion": json_that_is_not_hclogs,
}
NOT_TRIED = {
    "plugin exited before we could connect",  # by chance: the host sees the end of the process before the end of stdout
    "connection reset by peer",  # by chance: how the connection ends depends on the data in flight
    "is not implemented",  # test_misuse.py
    "DeadlineExceeded",  # test_calls.py
    "remote error: tls: ...",  # the host may say this instead, depending on the moment
}


@pytest.mark.parametrize("text", SAID)
def test_what_the_host_says(world: World, text: str) -> None:
    if "BdbQuit" in text and sys.version_info >= (3, 14):
        pytest.skip("pdb exits without BdbQuit")
    said = SAID[text](world)
    while "plugin exited before we could connect" in said:  # by chance, as the document says
        said = SAID[text](world)
    assert text in said


def test_each_error_of_the_lists_is_tried() -> None:
    lists = DOCUMENT[DOCUMENT.index("\n## What the host says") :]
    rows = re.findall(r"^- ((?:[^`:]|`[^`]*`)*): ", lists, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        texts = re.findall(r"`([^`]*)`", row)
        missing = [text for text in texts if not any(text.split("...")[-1].lstrip(": ") in said for said in SAID)]
        assert set(missing) <= NOT_TRIED, row
