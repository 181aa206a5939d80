"""Brokered connections, both ways, with the real broker of a Go host at the other end."""

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probe
import pytest
from harness import PLUGINS, ROOT, CallError, World, eventually
from probe_plugin import Probe

from goplugin.aio import Broker as AioBroker
from goplugin.environment import Environment
from goplugin.services import broker, host_pb2
from goplugin.transport import Plain


@pytest.mark.plain_only("go-plugin's example has its own host")
def test_go_plugins_bidirectional_example(world: World, example: Callable[[str], Path]) -> None:
    folder = world.folder / "counter"
    shutil.copytree(ROOT / "examples" / "bidirectional", folder)
    shutil.copy(PLUGINS / "counter_on_asyncio.py", folder)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--grpc_python_out=."]
    subprocess.run([*protoc, "counter.proto"], cwd=folder, check=True)
    script = folder / ("counter_on_asyncio.py" if world.on_asyncio else "plugin.py")
    env = {**world.env, "COUNTER_PLUGIN": shlex.join([sys.executable, str(script)])}

    def counter(*arguments: str) -> str:
        run = subprocess.run(
            [example("bidirectional"), *arguments], cwd=world.folder, env=env, capture_output=True, check=True
        )
        return run.stdout.decode()

    assert counter("put", "n", "2") == ""
    assert counter("put", "n", "40") == ""
    assert counter("get", "n") == "42\n"


@pytest.mark.windows
def test_dial_what_the_host_serves(world: World) -> None:
    host = probe.start(world)
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"


@pytest.mark.windows
def test_no_message_limit(world: World) -> None:
    host = probe.start(world)
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 32_000_000]) == "the same"


def test_the_info_may_come_after_the_call(world: World) -> None:
    host = probe.start(world)
    service_id = host.ask("next_id")["broker"]
    call = host.begin("call", method="/probe.Probe/dial", message=json.dumps([service_id, "x", 1]).encode())
    time.sleep(1)
    host.ask("accept", broker=service_id)
    assert call()["message"] == b'"the same"'


@pytest.mark.windows
def test_several_dials_at_once(world: World) -> None:
    host = probe.start(world)
    ids = [probe.serve(host) for _ in range(100)]
    before = probe.do(host, Probe.descriptors)
    calls = [
        host.begin("call", method="/probe.Probe/dial", message=json.dumps([service_id, f"{service_id};", 100]).encode())
        for service_id in ids
    ]
    assert {call()["message"] for call in calls} == {b'"the same"'}
    assert eventually(lambda: probe.do(host, Probe.descriptors) <= before + 2)


@pytest.mark.windows
def test_accept_serves_the_host(world: World) -> None:
    host = probe.start(world)
    service_id = probe.do(host, Probe.next_id)
    probe.do(host, Probe.accept, service_id)
    host.ask("dial", broker=service_id)
    assert probe.do(host, Probe.echo, "over the broker", broker=service_id) == "over the broker"
    assert probe.do(host, Probe.echo, "x" * 8_000_000, broker=service_id) == "x" * 8_000_000
    probe.do(host, Probe.close, service_id)
    with pytest.raises(CallError, match="Unavailable|Canceled"):
        probe.do(host, Probe.echo, "closed", broker=service_id)


def test_100_ids_at_once_both_ways(world: World) -> None:
    host = probe.start(world)
    before = probe.do(host, Probe.descriptors)
    ids = [probe.do(host, Probe.next_id) for _ in range(100)]
    assert len(set(ids)) == 100
    accepts = [host.begin("call", method="/probe.Probe/accept", message=b"%d" % service_id) for service_id in ids]
    for accept in accepts:
        accept()
    for dial in [host.begin("dial", broker=service_id) for service_id in ids]:
        dial()
    for service_id in ids:
        assert probe.do(host, Probe.echo, service_id, broker=service_id) == service_id
    for service_id in ids:
        probe.do(host, Probe.close, service_id)
    assert eventually(lambda: probe.do(host, Probe.descriptors) <= before + 2)


def test_ids_of_both_sides_may_be_equal(world: World) -> None:
    host = probe.start(world)
    service_id = probe.serve(host)
    assert probe.do(host, Probe.next_id) == service_id
    probe.do(host, Probe.accept, service_id)
    host.ask("dial", broker=service_id)
    assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    assert probe.do(host, Probe.echo, "x", broker=service_id) == "x"


@pytest.mark.windows
def test_an_id_nobody_serves(world: World) -> None:
    host = probe.start(world)
    begin = time.monotonic()
    with pytest.raises(CallError, match="within 5 s where it serves id 77|id 77: the host did not open it within 5 s"):
        probe.do(host, Probe.dial, [77, "x", 1])
    assert 4.5 < time.monotonic() - begin < 8


@pytest.mark.unmultiplexed("such a host sends no addresses; test_multiplex.py tests what it sends")
@pytest.mark.windows
def test_an_id_dialled_twice(world: World) -> None:
    host = probe.start(world)
    service_id = probe.serve(host)
    assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    with pytest.raises(CallError, match=f"serves id {service_id}.*an id can be dialled only once"):
        probe.do(host, Probe.dial, [service_id, "x", 1])


@pytest.mark.windows
def test_an_id_accepted_twice(world: World) -> None:
    host = probe.start(world)
    probe.do(host, Probe.accept, 5)
    with pytest.raises(CallError, match="id 5 is accepted already"):
        probe.do(host, Probe.accept, 5)
    probe.do(host, Probe.close, 5)
    probe.do(host, Probe.accept, 5)  # the server is closed, so the id is free again


@pytest.mark.parametrize("service_id", [2**32, -1, "one"])
def test_what_is_no_id(world: World, service_id: object) -> None:
    host = probe.start(world)
    for _ in range(2):
        with pytest.raises(CallError, match="out of range|expected|int"):
            probe.do(host, Probe.accept, service_id)
        with pytest.raises(CallError, match="out of range|expected|int"):
            probe.do(host, Probe.dial, [service_id, "x", 1])


def test_what_fails_to_accept_can_be_accepted(world: World) -> None:
    host = probe.start(world)
    before = probe.do(host, Probe.descriptors)
    for _ in range(3):
        with pytest.raises(CallError, match="no services today"):
            probe.do(host, Probe.accept_badly, 5)
    assert probe.do(host, Probe.descriptors) <= before + 1
    probe.do(host, Probe.accept, 5)


@pytest.mark.unmultiplexed("such a host sends no addresses; test_multiplex.py tests what it sends")
@pytest.mark.slow
def test_what_nobody_dialled_is_forgotten_and_said(world: World) -> None:
    host = probe.start(world)
    forgotten = probe.serve(host)
    time.sleep(5)
    assert host.logged(f"the host serves id {forgotten}, but nobody dialled it", **{"@level": "warn"})
    with pytest.raises(CallError, match=f"where it serves id {forgotten}"):
        probe.do(host, Probe.dial, [forgotten, "x", 1])


@pytest.mark.unmultiplexed("such a host sends no addresses; test_multiplex.py tests what it sends")
@pytest.mark.parametrize(
    ("network", "address", "error"),
    [
        ("", "", "not an address"),
        ("carrier pigeon", "coop", "not an address"),
        ("tcp", "nowhere", "not an address"),
        ("unix", "", "not an address"),
        ("tcp", "127.0.0.1:1", "refused"),
        ("tcp", "127.0.0.1:99999", "port|address"),
        ("unix", "/nonexistent/socket", "No such file"),
    ],
)
def test_garbage_infos(world: World, network: str, address: str, error: str) -> None:
    """The test sends them on a second broker stream, beside the host's own."""
    host = probe.start(world)
    host.ask("open", stream=1, method=probe.START_STREAM)
    info = host_pb2.ConnInfo(service_id=9, network=network, address=address)
    host.ask("send", stream=1, message=info.SerializeToString())
    with pytest.raises(CallError, match=f"{error}|UNAVAILABLE"):
        probe.do(host, Probe.dial, [9, "x", 1])
    assert eventually(lambda: any(re.search(error, str(record)) for record in host.log()))
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"


def test_a_stream_of_garbage(world: World) -> None:
    host = probe.start(world)
    host.ask("open", stream=1, method=probe.START_STREAM)
    host.ask("send", stream=1, message=b"\xff\xff\xff\xff not a ConnInfo")
    with pytest.raises(CallError):
        host.ask("recv", stream=1)
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"


@pytest.mark.windows
def test_everything_ends_with_the_plugin(world: World) -> None:
    """Accepted ids and a dial that waits do not delay Kill(). Every test checks afterwards for files and processes."""
    host = probe.start(world)
    for service_id in (1, 2, 3):
        probe.do(host, Probe.accept, service_id)
    host.ask("dial", broker=1)
    probe.do(host, Probe.echo, "x", broker=1)
    waiting = host.begin("call", method="/probe.Probe/dial", message=b'[77, "x", 1]')
    time.sleep(0.3)
    plugin = world.plugin()
    plugin.send_signal(signal.SIGTERM)
    with pytest.raises(CallError):
        waiting()
    assert eventually(lambda: not world.plugins(), 3)


@pytest.mark.unmultiplexed("such a host sends no addresses; test_multiplex.py tests what it sends")
def test_two_hosts_with_equal_ids(world: World) -> None:
    """As in Go, the plugin keeps the first address, and logs the other one."""
    host = probe.start(world)
    host.ask("open", stream=1, method=probe.START_STREAM)
    for port in (1, 2):  # nobody listens there; one stream keeps the order
        info = host_pb2.ConnInfo(service_id=77, network="tcp", address=f"127.0.0.1:{port}")
        host.ask("send", stream=1, message=info.SerializeToString())
    assert host.logged("a host serves id 77, but another host serves that id already", **{"@level": "warn"})
    with pytest.raises(CallError, match="UNAVAILABLE") as failed:
        probe.do(host, Probe.dial, [77, "x", 1])
    # Under AutoMTLS the companion dials, and logs the address.
    assert "127.0.0.1:1:" in str(failed.value) or host.logged("127.0.0.1:1:")


def test_a_dial_for_which_there_was_no_thread_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread ends the waits of all dials. If it could not start, the next dial starts it."""
    monkeypatch.setattr(broker, "TIMEOUT", 0.2)
    transport: Any = None
    dialling = broker.Broker(transport, {})
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            dialling.dial(1)
    with pytest.raises(TimeoutError, match="where it serves id 2"):
        dialling.dial(2)


def test_an_address_that_comes_when_its_dial_is_cancelled() -> None:
    """The next dial gets the address."""

    async def dial_twice() -> None:
        dialling = AioBroker(Plain(Environment(), str), {"options": ()})
        first = asyncio.ensure_future(dialling.dial(7))
        await asyncio.sleep(0)
        dialling._receive(host_pb2.ConnInfo(service_id=7, network="tcp", address="127.0.0.1:1"))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        await (await dialling.dial(7)).close()

    asyncio.run(dial_twice())


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
