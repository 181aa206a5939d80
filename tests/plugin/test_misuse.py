"""Mistakes of plugin authors: the plugin reports each one once, at level error, in the host's log and error."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from authors import ON_ASYNCIO, RIGHT
from by_hand import HOSTS_VARIABLES
from harness import ROOT, CallError, Host, World
from kv import get, put

# The right line, the wrong one that replaces it, and what the log says. Each of these mistakes ends the plugin.
# AWAIT stands for `await` on asyncio, and for nothing on threads.
ENDS = {
    "the handshake line is not printed": (
        "print(AWAIT plugin.listen(server), flush=True)",
        "AWAIT plugin.listen(server)",
        "before the handshake line was printed: write print(AWAIT plugin.listen(server), flush=True)",
    ),
    "listen twice": ("AWAIT plugin.wait()", "AWAIT plugin.listen(server)", "plugin.listen() was called twice"),
    "an exception in main": ("AWAIT plugin.wait()", "1 / 0", "ZeroDivisionError: division by zero"),
}
ENDS_ON_THREADS = {
    "the handshake line goes to a descriptor": (
        "print(plugin.listen(server), flush=True)",
        "import os; os.write(1, plugin.listen(server).encode() + b'\\n')",
        "before the handshake line was printed",
    ),
    "the handshake line goes to an older stream": (
        "print(plugin.listen(server), flush=True)",
        "print(plugin.listen(server), flush=True, file=sys.__stdout__)",
        "older streams, such as sys.__stdout__",
    ),
    "the handshake line goes to a new stream": (
        "print(plugin.listen(server), flush=True)",
        "import os; sys.stdout = os.fdopen(1, 'w'); print(plugin.listen(server), flush=True)",
        "new ones, from os.fdopen(1), lead to the host's log",
    ),
    "no listen": (
        "print(plugin.listen(server), flush=True)\nplugin.wait()\n",
        "",
        "main() ended without plugin.listen",
    ),
    "wait before listen": ("print(plugin.listen(server), flush=True)\n", "", "plugin.wait() was called before"),
    "grpc.aio": (
        "server = grpc.server(**plugin.server_arguments)",
        "import asyncio; asyncio.set_event_loop(asyncio.new_event_loop()); server = grpc.aio.server()",
        "plugin.listen() needs the server from grpc.server(...), but it was given a grpc.aio.server",
    ),
    "not a server": (
        "plugin.listen(server)",
        "plugin.listen(plugin)",
        "plugin.listen() needs the server from grpc.server(...), but it was given a Plugin",
    ),
    "a second Plugin": ("plugin.wait()", "goplugin.Plugin(HANDSHAKE)", "this process has a goplugin.Plugin already"),
    "in a thread": (
        "plugin = goplugin.Plugin(HANDSHAKE)",
        "threading.Thread(target=goplugin.Plugin, args=(HANDSHAKE,)).start(); time.sleep(3600)",
        "goplugin.Plugin must be created in the main thread",
    ),
    "started already": (
        "print(plugin.listen(server), flush=True)",
        "server.start(); print(plugin.listen(server), flush=True)",
        "call plugin.listen(server) instead of server.start(), which it does itself",
    ),
    "no config": (
        "plugin = goplugin.Plugin(HANDSHAKE)",
        "plugin = goplugin.Plugin(HANDSHAKE._replace(protocol_versions=[]))",
        "HandshakeConfig.protocol_versions is empty",
    ),
    "another cookie": (
        "plugin = goplugin.Plugin(HANDSHAKE)",
        "plugin = goplugin.Plugin(HANDSHAKE._replace(magic_cookie_value='bye'))",
        "HANDSHAKE expects BASIC_PLUGIN=bye in the environment, but BASIC_PLUGIN is 'hello'",
    ),
    "another cookie's name": (
        "plugin = goplugin.Plugin(HANDSHAKE)",
        "plugin = goplugin.Plugin(HANDSHAKE._replace(magic_cookie_key='OTHER'))",
        "HANDSHAKE expects OTHER=hello in the environment, but OTHER is not set",
    ),
    "a missing package": ("import kv_pb2_grpc", "import requestz", "ModuleNotFoundError: No module named 'requestz'"),
    "an exception at import": ("import kv_pb2_grpc", "1 / 0", "ZeroDivisionError: division by zero"),
    "sys.exit with a text": ("import kv_pb2_grpc", "sys.exit('no config file')", "the plugin ends: no config file"),
    "sys.exit with a text in main": ("plugin.wait()", "raise SystemExit('no more')", "the plugin ends: no more"),
    "no wait": ("plugin.wait()\n", "", "main() ended without plugin.wait(), so the plugin ends at once"),
    "no plugin": (
        RIGHT[RIGHT.index("plugin = goplugin") :],
        "def main(): pass\n",
        "the script ended without goplugin.Plugin(HANDSHAKE): does it call main()?",
    ),
}
ENDS_ON_ASYNCIO = {
    "listen without await": (
        "await plugin.listen(server)",
        "plugin.listen(server)",
        "plugin.wait() was called before await plugin.listen(server)",
    ),
    "wait without await": (
        "await plugin.wait()",
        "plugin.wait()",
        "main() ended without await plugin.wait(), so the plugin ends at once",
    ),
    "no listen": ("print(await plugin.listen(server), flush=True)", "return", "main() ended without await plugin.li"),
    "grpc.server": (
        "server = grpc.aio.server(**plugin.server_arguments)",
        "from concurrent import futures; server = grpc.server(futures.ThreadPoolExecutor())",
        "plugin.listen() needs the server from grpc.aio.server(...), but it was given a grpc.server",
    ),
    "started already": (
        "print(await plugin.listen(server), flush=True)",
        "await server.start(); print(await plugin.listen(server), flush=True)",
        "call `await plugin.listen(server)` instead of server.start(), which it does itself",
    ),
    "asyncio.run is missing": (
        "asyncio.run(main())",
        "main()",
        "the script ended without goplugin.Plugin(HANDSHAKE): does it call main()?",
    ),
}
AFTER_THE_HANDSHAKE = (
    "listen twice",
    "a second Plugin",
    "an exception in main",
    "sys.exit with a text in main",
    "no wait",
    "wait without await",
)
KEEPS_EXIT_CODE_0 = ("no plugin", "asyncio.run is missing")


def script(world: World, text: str) -> Path:
    path = world.folder / "mistaken.py"
    path.write_text(text)
    return path


def start(world: World, wrong: str, instead: str, right: str = RIGHT, **config: Any) -> Host:
    assert wrong in right
    return world.host(script(world, right.replace(wrong, instead)), **config)


def errors(host: Host) -> list[dict[str, Any]]:
    """What goplugin logged at level error."""
    found = [record for record in host.log() if record["@level"] == "error" and "goplugin" in record.get("@module", "")]
    # Sometimes a grpc.aio server is collected after its loop has closed, and raises this.
    return [record for record in found if "Server.__del__" not in record["@message"]]


ON_BOTH = pytest.mark.parametrize("right", [RIGHT, ON_ASYNCIO], ids=["threads", "asyncio"])
MISTAKES = [("threads", mistake) for mistake in ENDS | ENDS_ON_THREADS]
MISTAKES += [("asyncio", mistake) for mistake in ENDS | ENDS_ON_ASYNCIO]


@pytest.mark.parametrize(("kind", "mistake"), MISTAKES)
@pytest.mark.windows
def test_the_plugin_ends_and_says_why(world: World, kind: str, mistake: str) -> None:
    right, await_, mistakes = (
        (ON_ASYNCIO, "await ", ENDS | ENDS_ON_ASYNCIO) if kind == "asyncio" else (RIGHT, "", ENDS | ENDS_ON_THREADS)
    )
    wrong, instead, message = (text.replace("AWAIT ", await_) for text in mistakes[mistake])
    host = start(world, wrong, instead, right)
    told = ""
    try:
        host.ask("start")
    except CallError as error:
        told = str(error)
    assert world.gone()
    record = host.logged(message, **{"@level": "error"})
    assert record, (told, host.log())
    assert len(errors(host)) == 1
    if "Error: " in message:
        assert "Traceback" in record["stacktrace"]
    # Once more without a host, which would kill the plugin as soon as it has read the first line.
    process = world.run(sys.executable, world.folder / "mistaken.py", env={**world.env, **HOSTS_VARIABLES})
    out, err = process.communicate(timeout=20)
    assert process.returncode == (0 if mistake in KEEPS_EXIT_CODE_0 else 1)
    first, *more = out.decode().splitlines()
    assert more == []
    if mistake in AFTER_THE_HANDSHAKE:
        assert re.fullmatch(r"1\|1\|tcp\|127\.0\.0\.1:\d+\|grpc", first)
    else:
        assert first.startswith("goplugin: ")
        assert message.removeprefix("the plugin ends: ") in first
        assert first in told  # the host quotes it in its own error
    assert message in err.decode()


@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
@ON_BOTH
def test_the_right_plugin_says_nothing(world: World, right: str, auto_mtls: bool) -> None:
    host = start(world, "", "", right, auto_mtls=auto_mtls)
    host.ask("start")
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9
    assert errors(host) == []


@pytest.mark.windows
def test_grpc_imported_first_is_told_and_works(world: World) -> None:
    host = start(world, "import goplugin\nimport grpc\n", "import grpc\nimport goplugin\n")
    host.ask("start")
    put(host, "k", b"v")
    assert host.logged("grpc was imported before goplugin", **{"@level": "error"})
    assert len(errors(host)) == 1


@ON_BOTH
@pytest.mark.windows
def test_a_server_without_goplugins_arguments_is_told_and_works(world: World, right: str) -> None:
    instead = "" if "asyncio" in right else "__import__('concurrent.futures').futures.ThreadPoolExecutor(10)"
    host = start(world, "**plugin.server_arguments", instead, right)
    host.ask("start")
    put(host, "k", b"v")
    assert host.logged("pass **plugin.server_arguments to the function that makes it", **{"@level": "error"})
    assert host.ask("kill")["seconds"] < 1.9
    assert len(errors(host)) == 1


WAYS_TO_PRINT = [
    "sys.stdout.write(plugin.listen(server) + '\\n')",
    "print(plugin.listen(server), file=sys.stdout, flush=True)",
    "sys.stdout.buffer.write(plugin.listen(server).encode() + b'\\n')",
    "print('before', plugin.listen(server), 'after')",
    "line = plugin.listen(server); print('in between'); print(line); print(line)",
]


@pytest.mark.parametrize("way", WAYS_TO_PRINT)
@pytest.mark.windows
def test_ways_to_print_the_handshake_line(world: World, way: str) -> None:
    host = start(world, "print(plugin.listen(server), flush=True)", way)
    host.ask("start")
    host.ask("ping")
    assert errors(host) == []


WAYS_TO_WAIT = [
    "server.wait_for_termination()",
    "while True: time.sleep(1)",
    "threading.Event().wait()",
    "while not server.wait_for_termination(60): pass",
]


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
@pytest.mark.windows
def test_other_ways_to_wait_leave_on_shutdown_too(world: World, way: str) -> None:
    host = start(world, "plugin.wait()", way)
    host.ask("start")
    get_nothing(host)
    assert host.ask("kill")["seconds"] < 1.9  # the host would kill it after 2 s
    assert not host.logged_now("failed to exit gracefully")
    assert world.gone()


def get_nothing(host: Host) -> None:
    with pytest.raises(CallError, match="NotFound"):
        get(host, "nothing")


def by_hand(world: World, *arguments: str, **variables: str) -> tuple[int, str, str]:
    process = world.run(sys.executable, ROOT / "plugin.py", *arguments, env={**world.env, **variables})
    out, err = process.communicate(timeout=20)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("arguments", [("--debgu",), ("--config", "x")])
@pytest.mark.windows
def test_an_unknown_option_by_hand(world: World, arguments: tuple[str, ...]) -> None:
    code, out, err = by_hand(world, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"Unknown option {arguments[0]}.")
    assert "this plugin has only the option --debug" in err


def test_misuse_with_debug_is_told_on_the_terminal(world: World) -> None:
    path = script(world, RIGHT.replace("plugin.listen(server)", "plugin.listen(plugin)"))
    process = world.run(sys.executable, path, "--debug")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, b"")
    assert "plugin.listen() needs the server from grpc.server(...)" in err.decode()


def test_the_cookie_alone(world: World) -> None:
    """A person may set it to see the line. The plugin behaves as under a host that sets nothing else."""
    env = {**world.env, "BASIC_PLUGIN": "hello"}
    process = world.run(sys.executable, ROOT / "plugin.py", env=env)
    assert process.stdout
    assert re.fullmatch(rb"1\|1\|tcp\|127\.0\.0\.1:\d+\|grpc\n", process.stdout.readline())
    assert len(world.companions()) == 1
    process.terminate()
    assert process.wait(10) == 0
    process = world.run(sys.executable, ROOT / "plugin.py", "--debug", env=env)
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"plugin":')


def test_without_its_packages_it_says_so(world: World) -> None:
    """In Python without site-packages: a person reads it on stderr, a host in its log and its error."""
    process = world.run(sys.executable, "-S", ROOT / "plugin.py")
    out_bytes, err_bytes = process.communicate(timeout=20)
    assert (process.returncode, out_bytes) == (1, b"")
    said = (
        f"ModuleNotFoundError: No module named 'grpc' (is it installed for {sys.executable}?"
        " pip install -r requirements.txt, or -e . with pyproject.toml, helps)"
    )
    assert err_bytes.decode().splitlines()[-1] == said
    host = world.host(cmd=[sys.executable, "-S", str(ROOT / "plugin.py")])
    with pytest.raises(CallError, match=re.escape(f"goplugin: {said}")):
        host.ask("start")
    record = host.logged("No module named 'grpc'", **{"@level": "error"})
    assert record
    assert record["@message"] == f"the plugin ends: {said}"


@pytest.mark.windows
def test_a_plugin_without_the_health_service(world: World) -> None:
    text = "\n".join(line for line in RIGHT.splitlines() if "health" not in line)
    host = world.host(script(world, text))
    host.ask("start")
    with pytest.raises(CallError, match="Unimplemented"):
        host.ask("ping")
    assert host.logged("the host calls the health service, but there is none", **{"@level": "error"})


@ON_BOTH
@pytest.mark.windows
def test_a_health_service_under_another_name(world: World, right: str) -> None:
    host = start(world, '.set("plugin"', '.set("plugins"', right)
    host.ask("start")
    with pytest.raises(CallError, match="NotFound"):
        host.ask("ping")
    assert host.logged('for the name "plugin", but the service does not know it', **{"@level": "error"})
    assert len(errors(host)) == 1


@ON_BOTH
@pytest.mark.windows
def test_a_method_that_nobody_wrote(world: World, right: str) -> None:
    """A debug line lists what is there, since hosts often try optional methods. An unknown service is a warning."""
    host = start(world, "KVServicer()", "kv_pb2_grpc.KVServicer()", right)
    host.ask("start")
    says = {
        "/proto.KV/Get": ("debug", "the servicer's class does not define it"),
        "/proto.KV/Delete": ("debug", "the service has Get, Put"),
        "/other.Service/Method": ("warn", "there is no service other.Service; this plugin serves proto.KV"),
        "/other.Service/Another": ("debug", "there is no service other.Service; this plugin serves proto.KV"),
    }
    for method, (level, text) in says.items():
        with pytest.raises(CallError, match="Unimplemented"):
            host.call(method, b"")
        record = host.logged(f"{method} is not implemented", **{"@level": level})
        assert record
        assert text in record["@message"]
    assert [record for record in host.log() if record.get("@module") == "grpc._server"] == []
    assert errors(host) == []


NOTHING = ("pass", "must return a proto.GetResponse, but returned a NoneType")
ANOTHER = (
    "import kv_pb2; return kv_pb2.PutRequest(key='k')",
    "must return a proto.GetResponse, but returned a proto.PutRequest",
)
RESPONSES = {
    "nothing": (RIGHT, "def", *NOTHING),
    "another message": (RIGHT, "def", *ANOTHER),
    "async def": (RIGHT, "async def", "pass", "returned a coroutine: `async def` is for goplugin.aio"),
    "asyncio, nothing": (ON_ASYNCIO, "async def", *NOTHING),
    "asyncio, another message": (ON_ASYNCIO, "async def", *ANOTHER),
    "asyncio, nothing, def": (ON_ASYNCIO, "def", *NOTHING),
}


@pytest.mark.parametrize(("right", "define", "body", "text"), RESPONSES.values(), ids=RESPONSES)
@pytest.mark.windows
def test_a_response_of_another_type(world: World, right: str, define: str, body: str, text: str) -> None:
    """protobuf would serialize it and the host would misread it. The call fails with the text that is in the log."""
    servicer = f"class Wrong(KVServicer):\n    {define} Get(self, request, context): {body}\n"
    first = "plugin = " if right is RIGHT else "async def main"
    text_of_script = right.replace("KVServicer()", "Wrong()").replace(first, servicer + first, 1)
    host = world.host(script(world, text_of_script))
    host.ask("start")
    with pytest.raises(CallError, match=re.escape(text)):
        get(host, "k")
    put(host, "k", b"v")
    assert host.logged(text, **{"@level": "error"})
    (record,) = errors(host)
    assert record["@message"].startswith("/proto.KV/Get: ")
    assert "RuntimeWarning" not in str(host.log())  # about coroutines that nobody awaited


@ON_BOTH
@pytest.mark.windows
def test_a_request_that_is_none(world: World, right: str) -> None:
    host = start(world, "", "", right)
    host.ask("start")
    with pytest.raises(CallError):
        host.call("/proto.KV/Get", b"\xff\xff")
    record = host.logged("/proto.KV/Get: cannot parse proto.GetRequest: 2 bytes", **{"@level": "error"})
    assert record
    assert len(errors(host)) == 1
