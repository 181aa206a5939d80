"""Limits that people run into: threads, metadata, handlers that never return."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import probe
import pytest
from actions import handlers, own_process
from harness import PLUGINS, CallError, World
from probe_plugin import Probe

KiB = 1024


def test_no_threads_left(world: World) -> None:
    """As with `prlimit --nproc`. The threads that the plugin needs for leaving already exist."""
    host = probe.start(world)
    assert probe.act(host, own_process.use_up_the_threads) == "can't start new thread"
    host.begin("call", method="/probe.Probe/sleep", message=b"3600")
    assert probe.do(host, Probe.echo, 1) == 1
    assert host.ask("kill")["seconds"] < 4
    assert not host.logged_now("failed to exit gracefully")


@pytest.mark.parametrize("size", [7 * KiB, 9 * KiB, 17 * KiB, 1024 * KiB])
def test_metadata(world: World, size: int) -> None:
    """In both directions. gRPC's own limit is 8 KiB in Python and 16 MiB in Go."""
    host = probe.start(world)
    for _ in range(5):
        assert host.ask("call", method="/probe.Probe/echo", message=b"1", size=size)["message"] == b"1"
    for _ in range(5):
        assert probe.begin(host, handlers.send_trailing_metadata, size)()["trailer"] == size


@pytest.mark.parametrize("size", [7 * KiB, 20 * KiB, 1024 * KiB])
def test_a_long_error_text_over_the_broker(world: World, size: int) -> None:
    host = probe.start(world)
    host.ask("accept", broker=1, size=size)
    with pytest.raises(CallError, match=f"e{{{min(size, 60000)}}}"):
        probe.do(host, Probe.dial, [1, "x", 1])


@pytest.mark.grpcio_only("health checks share the handlers' pool on pygrpc-native")
def test_health_and_reflection_answer_whatever_the_handlers_do(world: World) -> None:
    host = probe.start(world)
    probe.act(host, handlers.limit_threads, 40)
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=60))
        time.sleep(1)  # until all threads are busy
        with pytest.raises(CallError, match="DeadlineExceeded"):
            probe.do(host, Probe.block, 0, seconds=0.5)
        for _ in range(3):
            assert host.call("/grpc.health.v1.Health/Check", b"\x0a\x06plugin", seconds=10) == b"\x08\x01"
        host.ask("open", stream=1, method="/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", seconds=10)
        host.ask("send", stream=1, message=b"\x3a\x00")
        assert b"plugin.GRPCStdio" in host.ask("recv", stream=1)["message"]
        assert host.ask("kill")["seconds"] < 4
        with pytest.raises(CallError):
            stuck.result()


WRAPPING = """\
import goplugin, grpc, plugin
class Wraps(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        handler = continuation(details)
        for name in handler._fields[4:] if handler else ():
            if call := getattr(handler, name):
                handler = handler._replace(**{name: lambda request, context, call=call: call(request, context)})
        return handler
make = goplugin.Plugin
def wrapping(*arguments, **options):
    made = make(*arguments, **options)
    made.server_arguments['interceptors'] += (Wraps(),)
    made.server_arguments['thread_pool']._max = 10
    return made
goplugin.Plugin = wrapping
import probe_plugin
probe_plugin.main()
"""


@pytest.mark.threads_only("a script for threads")
@pytest.mark.grpcio_only("pygrpc-native has one pool for all methods")
def test_an_interceptor_of_the_authors_takes_no_threads_away(world: World) -> None:
    script = world.folder / "wrapping.py"
    script.write_text(WRAPPING)
    world.env["PYTHONPATH"] += ":" + str(PLUGINS)
    host = probe.start(world, script)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=12)
    time.sleep(0.5)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.do(host, Probe.echo, 1, seconds=0.5)
    assert host.ask("kill")["seconds"] < 4
    assert not host.logged_now("failed to exit gracefully")


@pytest.mark.threads_only("a script for threads")
def test_the_limit_can_be_raised(world: World) -> None:
    """As docs/guide.md describes."""
    script = world.folder / "raised.py"
    script.write_text(
        "import goplugin, plugin\nmake = goplugin.Plugin\n"
        "def raised(*arguments, **options):\n"
        "    made = make(*arguments, **options)\n"
        "    made.server_arguments['thread_pool'] = goplugin.Workers(max_threads=600)\n"
        "    return made\n"
        "goplugin.Plugin = raised\nimport probe_plugin\nprobe_plugin.main()\n"
    )
    world.env["PYTHONPATH"] += ":" + str(PLUGINS)
    host = probe.start(world, script)
    assert host.ask("call", method="/probe.Probe/block", message=b"3", repeat=560)["seconds"] < 6
    assert host.ask("kill")["seconds"] < 4


@pytest.mark.threads_only("asyncio has no such threads")
def test_64_handlers_that_wait(world: World) -> None:
    """One at a time they would take 6.4 s; two at a time, 3.2 s."""
    host = probe.start(world)
    probe.do(host, Probe.echo, 1)
    seconds = host.ask("call", method="/probe.Probe/sleep", message=b"0.1", repeat=64)["seconds"]
    assert seconds < 1


@pytest.mark.threads_only("asyncio has no such threads")
def test_idle_threads_do_not_wake_up(world: World) -> None:
    host = probe.start(world)
    host.ask("call", method="/probe.Probe/sleep", message=b"0.1", repeat=32)
    time.sleep(0.3)
    names = {task: (task / "comm").read_text() for task in Path(f"/proc/{world.plugin().pid}/task").iterdir()}
    assert len(names) > 32

    def switches() -> int:
        lines = [line for task in names for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    before = switches()
    time.sleep(2)
    assert switches() - before < 150  # grpc's own threads wake up 30 to 60 times; polling every 10 ms would add 200
