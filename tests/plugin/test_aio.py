"""What only a plugin on grpc.aio can do, or get wrong. The other modules test what it shares with threads."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import probe
import psutil
import pytest
from actions import Call, handlers, on_asyncio
from authors import ON_ASYNCIO
from harness import CallError, World, eventually
from kv import put
from probe_plugin import Probe, ProbeOnAsyncio

import goplugin.aio
import goplugin.testing
from plugin import HANDSHAKE

MB = 1_000_000

Action = Callable[[Call], Coroutine[Any, Any, None]]


@pytest.mark.windows
def test_a_deadline_cancels_the_handler(world: World) -> None:
    host = probe.start(world)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.act(host, on_asyncio.note_cancellation, seconds=0.3)
    assert eventually((world.folder / "cancelled").exists)
    assert probe.do(host, Probe.echo, 1) == 1


@pytest.mark.windows
def test_a_caller_that_leaves_cancels_the_handler(world: World) -> None:
    host = probe.start(world)
    probe.open_stream(host, 1, "/probe.Streams/hold_or_note", b"noted")
    assert host.ask("recv", stream=1)["message"] == b"open"
    host.ask("cancel", stream=1)
    assert eventually((world.folder / "noted").exists)


def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_plugin(world: World) -> None:
    host = probe.start(world)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.act(host, on_asyncio.swallow_cancellation, seconds=0.3)
    assert eventually((world.folder / "swallowed").exists)
    probe.begin(host, on_asyncio.swallow_cancellation)
    assert host.ask("kill")["seconds"] < 4
    assert not host.logged_now("failed to exit gracefully")
    assert world.gone()


@pytest.mark.windows
def test_a_cancelled_handler_has_time_to_clean_up(world: World) -> None:
    """Kill() closes the connection after Shutdown, which cancels the calls in flight."""
    host = probe.start(world)
    probe.begin(host, on_asyncio.clean_up_when_cancelled)
    assert eventually((world.folder / "begun").exists)
    assert host.ask("kill")["seconds"] < 1.9
    assert (world.folder / "clean").exists()


RAISED = [
    (on_asyncio.raise_system_exit, "Unknown: SystemExit: no credentials"),
    (on_asyncio.raise_keyboard_interrupt, "Unknown: KeyboardInterrupt"),
    (on_asyncio.raise_cancelled_error, "Unknown: CancelledError: gone"),
    (on_asyncio.wait_for_a_cancelled_task, "Unknown: CancelledError"),
    (on_asyncio.cancel_itself, "Unknown: CancelledError"),
    (on_asyncio.raise_value_error, "Unknown: Exception calling application: it broke"),
    (on_asyncio.abort_with_a_surrogate, r"Aborted: a\udc80"),
    (on_asyncio.set_details_with_a_surrogate_and_raise, r"Unknown: a\udc80"),
    (on_asyncio.set_status_with_a_surrogate_and_raise, r"DataLoss: a\udc80"),
    (on_asyncio.abort, "Aborted: no"),
    (on_asyncio.set_code_and_raise, "DataLoss: Exception calling"),
]


@pytest.mark.parametrize(("action", "answer"), RAISED, ids=[action.__name__ for action, _ in RAISED])
@pytest.mark.windows
def test_whatever_a_handler_raises_is_answered(world: World, action: Action, answer: str) -> None:
    host = probe.start(world)
    with pytest.raises(CallError) as raised:
        probe.act(host, action, seconds=5)
    assert answer in str(raised.value)
    assert probe.do(host, Probe.echo, 1) == 1
    aborts = action in (on_asyncio.abort, on_asyncio.abort_with_a_surrogate)
    if not aborts:
        assert host.logged("/probe.Probe/act_in_the_loop: ", **{"@level": "error"})
    host.ask("kill")
    logged = [record for record in host.log() if record["@level"] == "error"]
    assert len(logged) == (0 if aborts else 1)
    assert all("Traceback" in record["stacktrace"] for record in logged)


def test_a_child_by_fork_in_a_handler_ends_with_it(world: World) -> None:
    host = probe.start(world)
    pid = probe.act(host, on_asyncio.fork)
    assert isinstance(pid, int)
    assert pid > 0
    assert eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert probe.do(host, Probe.echo, 1) == 1


def test_a_blocked_loop_does_not_keep_the_plugin_when_its_host_dies(world: World) -> None:
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/block_the_loop", message=b"3600")
    time.sleep(0.3)
    host.process.kill()
    assert world.gone()


def test_a_blocked_loop_is_told(world: World) -> None:
    world.env["PROBE_COOKIE"] = "probe"
    config = goplugin.HandshakeConfig([1], "PROBE_COOKIE", "probe")
    command = [sys.executable, str(probe.PLUGIN)]
    with goplugin.testing.start(command, config, env=world.env, auto_mtls=world.auto_mtls) as client:
        block: Any = client.channel.unary_unary("/probe.Probe/block_the_loop")
        call = block.future(b"3600")  # keep it: grpc cancels a call that is collected
        time.sleep(0.3)
        os.kill(client.pid, signal.SIGTERM)
        assert eventually(lambda: client.exit_code is not None, 4)
        assert call
    assert client.exit_code == 0
    (record,) = [record for record in client.log if record["@level"] == "error"]
    assert "a handler blocks it" in record["@message"]
    assert "time.sleep(seconds)" in record["stacktrace"]


def test_what_is_printed_in_the_loop_is_kept_until_the_loop_can_send_it(world: World) -> None:
    host = probe.start(world)
    probe.do(host, ProbeOnAsyncio.print_at_once, [7, 32 * MB])
    assert eventually(lambda: len(host.ask("stdio")["stdout"]) == 32 * MB)


def test_the_loop_never_waits_for_a_host_that_does_not_read(world: World) -> None:
    host = probe.start(world)
    begin = time.monotonic()
    probe.do(host, ProbeOnAsyncio.print_at_once, [7, 100 * MB])
    assert time.monotonic() - begin < 4  # PATIENCE is 5 s
    assert host.logged("bytes of stdout dropped")
    limit = 64 << 20
    assert eventually(lambda: limit <= len(host.ask("stdio")["stdout"]) < limit + MB)


def test_a_thousand_handlers_wait_without_threads(world: World) -> None:
    host = probe.start(world)
    waiting = host.begin("call", method="/probe.Probe/sleep", message=b"2", repeat=1000)
    time.sleep(1)
    assert world.plugin().num_threads() < 30
    assert waiting()["seconds"] < 20


def test_services_do_not_wait_behind_handlers_that_are_def(world: World) -> None:
    """520 blocked calls exceed the limit of 512 threads. test_limits.py tests Shutdown and health."""
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=520)
    time.sleep(2)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.do(host, Probe.block, 0, seconds=1)
    probe.act(host, on_asyncio.print_hello)
    assert eventually(lambda: host.ask("stdio")["stdout"] == b"hello\n")
    host.ask("accept", broker=1)
    assert probe.do(host, Probe.dial, [1, "x", 1]) == "the same"
    probe.do(host, Probe.accept, 2)
    host.ask("dial", broker=2)
    assert probe.do(host, Probe.echo, "x", broker=2) == "x"
    assert host.ask("kill")["seconds"] < 4


@pytest.mark.windows
def test_a_handler_that_is_def_has_a_whole_context(world: World) -> None:
    host = probe.start(world)
    assert probe.act(host, handlers.use_context_and_name_peer, seconds=5)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.act(host, handlers.notice_the_end, seconds=0.5)
    assert eventually((world.folder / "noticed").exists)
    with pytest.raises(CallError, match=r"Aborted.*not now"):
        probe.act(host, handlers.abort)
    with pytest.raises(CallError, match="Canceled"):
        probe.act(host, handlers.cancel)
    # A handler cannot change a call that has ended; the log gets an error that no caller can get.
    for name in handlers.USES_AFTER_THE_END:
        with pytest.raises(CallError, match="DeadlineExceeded"):
            probe.act(host, handlers.use_after_the_end, name, seconds=0.5)
        assert eventually((world.folder / f"{name}-refused").exists)
    with pytest.raises(CallError, match="DeadlineExceeded"):
        probe.act(host, handlers.raise_after_the_end, seconds=0.5)
    assert host.logged("nobody hears", **{"@level": "error"})
    assert probe.do(host, Probe.echo, 1) == 1


def test_streams_of_handlers_that_are_def(world: World) -> None:
    host = probe.start(world)
    host.ask("open", stream=1, method="/probe.Threads/chat")
    for text in (b"a", b"b"):
        host.ask("send", stream=1, message=text)
        assert host.ask("recv", stream=1)["message"] == b"you said " + text
    host.ask("half_close", stream=1)
    assert "message" not in host.ask("recv", stream=1)  # the end of the stream
    threads = world.plugin().num_threads()
    for stream in range(2, 30):  # these callers leave
        probe.open_stream(host, stream, "/probe.Threads/hold")
        assert host.ask("recv", stream=stream)["message"] == b"open"
    held = world.plugin().num_threads()
    assert held >= threads + 20
    for stream in range(2, 30):
        host.ask("cancel", stream=stream)
    assert host.ask("kill")["seconds"] < 1.9  # all handlers have ended


LOOPS = ["asyncio.run(main())", "import uvloop; uvloop.run(main())"]
HANDLER = "asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: open('usr1', 'w'))"
ORDERS = ["plugin = goplugin.aio.Plugin(HANDSHAKE)", "await plugin.wait()"]  # the handler goes before one of them


@pytest.mark.parametrize("order", ORDERS, ids=["handler first", "Plugin first"])
@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_signals_of_loop_and_plugin(world: World, loop: str, order: str) -> None:
    text = ON_ASYNCIO.replace(order, f"{HANDLER}; {order}").replace(LOOPS[0], loop)
    (world.folder / "signals.py").write_text(text)
    host = world.started(world.folder / "signals.py")
    put(host, "k", b"v")
    os.kill(world.plugin().pid, signal.SIGUSR1)
    assert eventually((world.folder / "usr1").exists)
    os.kill(world.plugin().pid, signal.SIGINT)  # the plugin leaves Ctrl-C to the host
    put(host, "k", b"v")
    os.kill(world.plugin().pid, signal.SIGTERM)
    assert world.gone()
    assert not [record for record in host.log() if record["@level"] == "error" and "goplugin" in str(record)]


def test_ctrl_c_ends_what_a_person_started(world: World) -> None:
    process = world.run(sys.executable, world.kv_plugin, "--debug")
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"plugin":')
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0


def test_debug_lines_of_grpc_and_asyncio_stay_away(world: World) -> None:
    world.env["PLUGIN_LOG_LEVEL"] = "trace"
    host = world.started()
    put(host, "k", b"v")
    host.ask("kill")
    assert host.logged("leaving: Shutdown")
    modules = {record["@module"] for record in host.log() if "@module" in record}
    assert not [module for module in modules if "grpc" in module or "asyncio" in module]


@pytest.mark.windows
def test_wait_can_be_cancelled(world: World) -> None:
    """As asyncio.timeout() does: main() may do other things in between."""
    text = ON_ASYNCIO.replace(
        "    await plugin.wait()",
        "    for _ in range(3):\n        try: await asyncio.wait_for(plugin.wait(), 0.1)\n"
        "        except asyncio.TimeoutError: open('again', 'w')\n    await plugin.wait()",
    )
    (world.folder / "waits.py").write_text(text)
    host = world.started(world.folder / "waits.py")
    assert eventually((world.folder / "again").exists)
    time.sleep(0.5)
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9


def test_the_broker_waits_without_threads(world: World) -> None:
    """It dials ids that the host never serves."""
    host = probe.start(world)
    threads = world.plugin().num_threads()
    waiting = probe.begin(host, on_asyncio.wait_for_dials, 200)
    time.sleep(1)
    assert world.plugin().num_threads() < threads + 5
    assert waiting()["message"] == b'["TimeoutError"]'


def test_a_cancelled_dial_leaves_the_id_to_the_next_one(world: World) -> None:
    host = probe.start(world)
    assert probe.act(host, on_asyncio.cancel_a_dial, 1) is True
    host.ask("accept", broker=1)
    assert probe.do(host, Probe.dial, [1, "x", 1]) == "the same"


def test_what_waits_when_the_broker_closes_is_told() -> None:
    """The broker closes when the plugin ends."""
    transport: Any = None

    async def dial_and_accept() -> list[Any]:
        broker = goplugin.aio.Broker(transport, {})
        waits = [asyncio.ensure_future(broker.dial(7)), asyncio.ensure_future(broker.accept(8, print))]
        await asyncio.sleep(0.1)
        broker.close()
        return await asyncio.gather(*waits, broker.dial(9), return_exceptions=True)

    dialled, accepted, late = asyncio.run(dial_and_accept())
    assert repr(dialled) == "RuntimeError('cannot dial id 7: the plugin is leaving')"
    assert repr(accepted) == "RuntimeError('cannot accept id 8: the plugin is leaving')"
    assert repr(late) == "RuntimeError('cannot dial id 9: the plugin is leaving')"
    broker = goplugin.Broker(transport, {})
    with ThreadPoolExecutor() as pool:
        wait = pool.submit(broker.dial, 7)
        time.sleep(0.1)
        broker.close()
        assert repr(wait.exception()) == repr(dialled)


@pytest.mark.windows
def test_the_test_host_drives_the_example(world: World, tmp_path: Path) -> None:
    import kv_pb2
    import kv_pb2_grpc

    command = [sys.executable, str(world.kv_plugin)]
    env, mtls = world.env, world.auto_mtls
    with goplugin.testing.start(command, HANDSHAKE, cwd=tmp_path, env=env, auto_mtls=mtls) as client:
        kv = kv_pb2_grpc.KVStub(client.channel)
        kv.Put(kv_pb2.PutRequest(key="hello", value=b"world"))
        assert kv.Get(kv_pb2.GetRequest(key="hello")).value == b"world\n\nWritten from plugin-python"
    assert client.exit_code == 0
    assert not [record for record in client.log if record["@level"] in ("warn", "error")]


def test_a_thread_of_its_own_may_run_the_loop(world: World) -> None:
    text = ON_ASYNCIO.replace(
        "async def main():\n    plugin = goplugin.aio.Plugin(HANDSHAKE)\n", "async def main(plugin):\n"
    )
    text = text.replace(
        "asyncio.run(main())",
        "import threading\nplugin = goplugin.aio.Plugin(HANDSHAKE)\n"
        "thread = threading.Thread(target=lambda: asyncio.run(main(plugin)))\nthread.start()\nthread.join()",
    )
    (world.folder / "thread.py").write_text(text)
    host = world.started(world.folder / "thread.py")
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9
    assert not [record for record in host.log() if record["@level"] == "error"]
