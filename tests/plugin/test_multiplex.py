"""A host that multiplexes puts all connections into one. Most other tests run with such a host, too."""

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import by_hand
import probe
import psutil
import pytest
from actions import on_asyncio
from by_hand import end, line
from certificates import make_certificate
from harness import ROOT, CallError, Host, World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe
from yamux_frames import SYN, UPDATE, frame

from goplugin.services import host_pb2


def connections(process: psutil.Process) -> list[Any]:
    return [one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]


def test_there_is_one_connection(world: World) -> None:
    """Whatever the broker does, the companion has one connection, and serves no second one."""
    host = probe.start(world)
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"
    assert not connections(world.plugin())
    (only,) = connections(world.companion())
    with socket.create_connection(only.laddr) as second:
        second.settimeout(0.5)
        second.sendall(frame(UPDATE, SYN, 1, 0))
        with pytest.raises(TimeoutError):
            second.recv(1)


@pytest.mark.windows
def test_each_id_leads_to_its_own_server(world: World) -> None:
    """Only the plugin's main server has a health service; the servers of the ids have none."""
    host = probe.start(world)
    health = "/grpc.health.v1.Health/Check"
    for service_id in (1, 2, 3):
        probe.do(host, Probe.accept, service_id)
    for service_id in (3, 1, 2):
        host.ask("dial", broker=service_id)
        assert probe.do(host, Probe.echo, service_id, broker=service_id) == service_id
        with pytest.raises(CallError, match="Unimplemented"):
            host.call(health, b"\x0a\x06plugin", broker=service_id)
    probe.do(host, Probe.close, 2)
    with pytest.raises(CallError, match="Unavailable"):
        probe.do(host, Probe.echo, 2, broker=2)
    assert probe.do(host, Probe.echo, 3, broker=3) == 3
    assert host.call(health, b"\x0a\x06plugin") == b"\x08\x01"


@pytest.mark.windows
def test_an_id_can_be_dialled_again(world: World) -> None:
    """As in Go, where each connection has its own knock."""
    host = probe.start(world)
    service_id = probe.serve(host)
    for _ in range(3):
        assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    probe.do(host, Probe.accept, 1)
    for _ in range(3):
        host.ask("dial", broker=1)
        assert probe.do(host, Probe.echo, "x", broker=1) == "x"


@pytest.mark.windows
def test_the_host_dials_before_the_plugin_accepts(world: World) -> None:
    host = probe.start(world)
    host.ask("dial", broker=5)
    call = host.begin("call", method="/probe.Probe/echo", message=b'"early"', broker=5)
    time.sleep(1)
    probe.do(host, Probe.accept, 5)
    assert call()["message"] == b'"early"'


def test_ids_that_nobody_serves(world: World) -> None:
    """Other dials wait behind them and then work. An id that is served too late can be dialled afterwards."""
    host = probe.start(world)
    live = probe.serve(host)
    with ThreadPoolExecutor() as threads:
        dead = threads.submit(probe.do, host, Probe.dial, [77, "x", 1])
        time.sleep(0.3)
        behind = threads.submit(probe.do, host, Probe.dial, [live, "x", 1])
        host.ask("dial", broker=88)
        unserved = threads.submit(probe.do, host, Probe.echo, "x", broker=88)
        with pytest.raises(CallError, match="cannot dial id 77: the host did not open it within 5 s"):
            dead.result()
        assert behind.result() == "the same"
        with pytest.raises(CallError, match="timeout waiting for multiplexing knock handshake on id 88"):
            unserved.result()
    assert host.logged("the host dialled id 88, but nobody served it within 5 s", **{"@level": "warn"})
    host.ask("accept", broker=77)  # the host answers the old knock as well
    time.sleep(0.5)
    assert probe.do(host, Probe.dial, [77, "x", 1]) == "the same"
    assert probe.do(host, Probe.dial, [live, "x", 1]) == "the same"


@pytest.mark.parametrize(
    "info",
    [
        {"knock": {"knock": True, "ack": True}},
        {"knock": {"knock": True, "ack": True, "error": "no such door"}},
        {"knock": {"knock": True}},
        {"knock": {}},
        {"network": "tcp", "address": "127.0.0.1:1"},
        {},
    ],
    ids=str,
)
def test_knocks_of_no_use(world: World, info: dict[str, Any]) -> None:
    """Unexpected answers, knocks for ids that nobody serves, and addresses do not disturb later dials."""
    host = probe.start(world)
    probe.do(host, Probe.accept, 1)
    host.ask("open", stream=1, method=probe.START_STREAM)
    known = not info.get("knock", {}).get("knock")  # then the info is harmless even for id 1
    for service_id in (99, 99, 1) if known else (99, 99):
        host.ask("send", stream=1, message=host_pb2.ConnInfo(service_id=service_id, **info).SerializeToString())
    time.sleep(0.3)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"
    host.ask("cancel", stream=1)
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1]) == "the same"


def test_an_id_that_is_served_late_and_dialled_again(world: World) -> None:
    """The host answers once. The answer is for the dial that waits, not for the one that has given up."""
    host = probe.start(world)
    with pytest.raises(CallError, match="the host did not open it within 5 s"):
        probe.do(host, Probe.dial, [77, "x", 1])
    again = host.begin("call", method="/probe.Probe/dial", message=b'[77, "x", 1]')
    time.sleep(1)
    host.ask("accept", broker=77)
    assert again()["message"] == b'"the same"'


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_host_that_refuses_a_knock(world: World, times: int) -> None:
    """A Go host may refuse once, just as it begins to serve the id. A second refusal is final."""
    host = probe.start(world)
    waiting = host.begin("call", method="/probe.Probe/dial", message=b'[77, "x", 1]')
    host.ask("open", stream=1, method=probe.START_STREAM)
    refusal = host_pb2.ConnInfo(
        service_id=77, knock=host_pb2.ConnInfo.Knock(knock=True, ack=True, error="no such door")
    )
    for _ in range(times):
        time.sleep(0.6)
        host.ask("send", stream=1, message=refusal.SerializeToString())
    if times == 1:
        host.ask("accept", broker=77)
        assert waiting()["message"] == b'"the same"'
    else:
        with pytest.raises(CallError, match="cannot dial id 77: no such door"):
            waiting()


def hand_started(world: World) -> tuple[Any, socket.socket]:
    """Start the plugin without AutoMTLS. Returns its process and the host's one connection."""
    process = by_hand.run(world, PLUGIN_MULTIPLEX_GRPC="true")
    fields = line(process).rstrip("\n").split("|")
    assert fields[4:] == ["grpc", "", "true"]
    host, _, port = fields[3].rpartition(":")
    return process, socket.create_connection((host, int(port)))


@pytest.mark.windows
def test_what_is_not_yamux_ends_the_plugin(world: World) -> None:
    """The host can no longer call the plugin. The log gives the reason."""
    process, connection = hand_started(world)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert connection.recv(100) == frame(3, 0, 0, 1)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"the multiplexed connection to the host has ended: a frame of version 80, type 82" in err
    connection.close()


@pytest.mark.windows
def test_a_host_that_hangs_up_ends_the_plugin(world: World) -> None:
    process, connection = hand_started(world)
    connection.close()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b'@level":"error' not in err


def test_a_host_that_does_not_read_costs_no_memory(world: World) -> None:
    """The host sends endless pings and does not read the answers."""
    process, connection = hand_started(world)
    companion = eventually(world.companions)[0]
    before = companion.memory_info().rss
    connection.settimeout(2)
    sent = 0
    pings = frame(2, SYN, 0, 1) * 20_000
    with pytest.raises(TimeoutError):
        while sent < 200_000_000:
            sent += connection.send(pings[sent % 12 :])
    assert sent > 1_000_000
    assert companion.memory_info().rss - before < 20_000_000
    assert end(process)[0] == 0
    connection.close()


def test_yamux_is_imported_for_it_alone(world: World) -> None:
    """Neither AutoMTLS nor a plain plugin needs it."""
    folder = world.folder / "plugin"
    folder.mkdir()
    for name in ("plugin.py", "kv_pb2.py", "kv_pb2_grpc.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "goplugin", folder / "goplugin", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "goplugin" / "companion" / "yamux.py").write_text("raise RuntimeError('nobody needs this')\n")
    (folder / "goplugin" / "companion" / "multiplex.py").write_text("raise RuntimeError('nobody needs this')\n")
    world.env["PYTHONPATH"] = str(folder)
    for auto_mtls in (False, True):
        host = world.host(folder / "plugin.py", multiplex=False, auto_mtls=auto_mtls)
        host.ask("start")
        put(host, "k", b"v")
        host.close()


NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]


def contained(world: World, script: str) -> Host:
    """A host whose plugin runs as in a container: no network, its own processes and files, one shared folder."""
    inside = (
        'mount -t tmpfs none /mnt && mkdir /mnt/shared && mount --bind "$SHARED" /mnt/shared'
        f" && mount -t tmpfs none {world.folder.parent} && mkdir {world.folder} {world.temporary} && cd {world.folder}"
        f" && mount -t proc none /proc && exec '{sys.executable}' {script}"
    )
    return probe.host(world, cmd=[*NAMESPACES, "sh", "-c", inside], runner=True, container="/mnt/shared")


def test_in_a_container(world: World) -> None:
    """The plugin shares one folder with the host. Without multiplexing the broker could not work, because the host's
    sockets are elsewhere.
    """
    trial = [*NAMESPACES, "sh", "-c", "mount -t tmpfs none /mnt && mount -t proc none /proc"]
    if subprocess.run(trial, check=False).returncode != 0:
        pytest.skip("this user may not make the namespaces of a container")
    host = contained(world, str(probe.PLUGIN))
    assert host.ask("start")["network"] == "unix"
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    assert probe.do(host, Probe.dial, [probe.serve(host), "x", 1000]) == "the same"
    assert host.ask("kill")["seconds"] < 1.9
    assert world.gone()


def test_a_certificate_of_the_plugins_own(world: World) -> None:
    server, client = (make_certificate(world.folder, name) for name in ("server", "client"))
    world.env["PROBE_TLS_FILES"] = f"{server}:{server}:{client}"
    host = probe.start(world, auto_mtls=False, certificate=[str(client)] * 2)
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"


@pytest.mark.windows
def test_the_kv_host(world: World) -> None:
    host = world.started()
    put(host, "k", b"v" * 5_000_000)
    assert get(host, "k") == b"v" * 5_000_000 + SUFFIX


def descriptors(process: psutil.Process) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}


def test_no_descriptor_left_for_a_dial(world: World) -> None:
    """That dial fails. The next dial still reaches its own id."""
    host = probe.start(world)
    failing, next_one = host.ask("next_id")["broker"], host.ask("next_id")["broker"]
    host.ask("accept", broker=failing, size=30)  # calls to it fail
    host.ask("accept", broker=next_one)
    companion = world.companion()
    import resource  # not on Windows

    limits = resource.prlimit(companion.pid, resource.RLIMIT_NOFILE)
    free = min(set(range(100)) - descriptors(companion))
    resource.prlimit(companion.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    with pytest.raises(CallError, match="Too many open files"):
        probe.do(host, Probe.dial, [failing, "x", 1])
    resource.prlimit(companion.pid, resource.RLIMIT_NOFILE, limits)
    assert probe.do(host, Probe.dial, [next_one, "x", 1]) == "the same"


def test_the_last_words_of_a_killed_plugin_arrive(world: World) -> None:
    """Even if the companion sees the plugin and the connection end at the same moment."""
    process, connection = hand_started(world)
    companion = eventually(world.companions)[0]
    companion.suspend()
    with open(f"/proc/{process.pid}/fd/2", "wb") as stderr:
        stderr.write(b"the last words\n")
    process.kill()
    process.wait()
    connection.close()
    time.sleep(0.2)
    companion.resume()
    _, err = process.communicate(timeout=10)
    assert b"the last words" in err
    assert b"companion process failed" not in err


def test_a_plugin_that_answers_too_late(world: World) -> None:
    """The host has given up and opens no stream for it. The host's next stream, for another id, reaches that id."""
    host = probe.start(world)
    for service_id in (1, 2):
        probe.do(host, Probe.accept, service_id)
    plugin = world.plugin()
    plugin.suspend()
    host.ask("dial", broker=1)
    call = host.begin("call", method="/probe.Probe/echo", message=b'"one"', broker=1)
    with pytest.raises(CallError, match="timeout waiting for multiplexing knock handshake on id 1"):
        call()
    plugin.resume()
    probe.do(host, Probe.close, 1)  # so that a call that reaches the wrong id fails
    host.ask("dial", broker=2)
    assert probe.do(host, Probe.echo, "two", broker=2) == "two"


def test_a_cancelled_dial_and_another_one(world: World) -> None:
    """The host has opened the id twice. The next dial still reaches its own server, where calls fail."""
    if not world.on_asyncio:
        pytest.skip("threads cannot be cancelled")
    host = probe.start(world)
    service_id, other = probe.serve(host), host.ask("next_id")["broker"]
    host.ask("accept", broker=other, size=30)
    assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    for _ in range(3):
        assert probe.act(host, on_asyncio.cancel_a_dial_and_dial_again, service_id) == [True, "again"]
    for _ in range(3):
        with pytest.raises(CallError, match="e" * 30):
            probe.do(host, Probe.dial, [other, "x", 1])


def test_cancelled_dials_leave_nothing(world: World) -> None:
    if not world.on_asyncio:
        pytest.skip("threads cannot be cancelled")
    host = probe.start(world)
    service_id = probe.serve(host)
    assert probe.do(host, Probe.dial, [service_id, "x", 1]) == "the same"
    before = len(descriptors(world.companion()))
    probe.act(host, on_asyncio.cancel_many_dials, service_id)
    assert eventually(lambda: len(descriptors(world.companion())) <= before + 2)
