"""Strangers, other users, unusual systems and containers: what they do to a plugin, and what it leaves behind."""

import contextlib
import os
import select
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import by_hand
import grpc
import probe
import psutil
import pytest
from actions import children
from by_hand import HOSTS_VARIABLES, line
from certificates import HTTP2, certificate_in, client_context, make_certificate, served
from harness import World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe

MTLS: dict[str, Any] = {"auto_mtls": True}
MULTIPLEX: dict[str, Any] = {"multiplex": True}


def port_in(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def strangers(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Connect `number` callers at once; they say nothing."""
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.socket()) for _ in range(number)]
        for caller in callers:
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(("127.0.0.1", port))
        yield callers


def test_a_stranger_cannot_fill_the_hosts_log(world: World) -> None:
    """The plugin logs refusals, but only so many."""
    host = probe.start(world, **MTLS)
    port = port_in(host.ask("start")["address"])
    for _ in range(20):
        with strangers(port, 100):
            pass
        assert probe.do(host, Probe.echo, 1) == 1
    assert host.logged("refused a caller", **{"@level": "warn"})
    probe.do(host, Probe.log, [20, "the end", {}])
    assert host.logged("the end")
    assert sum(record["@message"].startswith("refused a caller") for record in host.log()) < 200


def for_a_host(world: World, *command: str | Path) -> tuple["subprocess.Popen[bytes]", int, ssl.SSLContext]:
    """Start the plugin under AutoMTLS. Returns its process, its port, and the TLS context of its host."""
    path = make_certificate(world.folder, "host")
    env = {**world.env, **HOSTS_VARIABLES, "PLUGIN_CLIENT_CERT": certificate_in(path)}
    process = world.run(*(command or (sys.executable, world.kv_plugin)), env=env, stderr=subprocess.DEVNULL)
    return process, port_in(line(process).split("|")[3]), client_context(path)


def test_bursts_of_strangers_do_not_delay_the_host(world: World) -> None:
    process, port, hosts = for_a_host(world)
    delays = []
    for _ in range(10):
        with strangers(port, 200):
            begin = time.monotonic()
            assert served(port, hosts)
            delays.append(time.monotonic() - begin)
    assert max(delays) < 0.9  # if the backlog is full, the system tries again only after a second
    process.terminate()
    assert process.wait(5) == 0


FEW_DESCRIPTORS = 'ulimit -n 256; exec "$0" "$@"'
UNFINISHED = 64  # handshakes that the plugin then allows


@contextlib.contextmanager
def patient_strangers(port: int, number: int) -> Iterator[None]:
    """Connect `number` callers, one after the other. They say nothing; the plugin has accepted them all."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=15)) for _ in range(number)
        ]
        # Otherwise the plugin might meet the last of them only after the host, which would then be the oldest.
        for connection in connections[: number - UNFINISHED]:
            with contextlib.suppress(ConnectionResetError):
                assert not connection.recv(1)
        yield


def test_strangers_cannot_use_up_the_descriptors(world: World) -> None:
    """With as few descriptors as macOS gives, the plugin refuses the oldest stranger, never the host."""
    _, port, hosts = for_a_host(world, "sh", "-c", FEW_DESCRIPTORS, sys.executable, world.kv_plugin)
    with patient_strangers(port, 300):
        assert [served(port, hosts) for _ in range(12)] == [True] * 12


FLOOD = """
import socket, sys
print(flush=True)
while True:
    connections = [socket.socket() for _ in range(100)]
    for connection in connections:
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", int(sys.argv[1])))
    for connection in connections:
        connection.close()
"""


def test_a_flood_of_strangers_does_not_push_the_host_out(world: World) -> None:
    """They come and go, more of them at once than the plugin allows unfinished handshakes."""
    _, port, hosts = for_a_host(world, "sh", "-c", FEW_DESCRIPTORS, sys.executable, world.kv_plugin)
    flood = world.run(sys.executable, "-c", FLOOD, str(port))
    line(flood)
    try:
        assert sum(served(port, hosts) for _ in range(12)) >= 10  # the system itself may drop a few
    finally:
        flood.kill()


def test_the_broker_works_while_strangers_use_up_the_descriptors(world: World) -> None:
    host = probe.start(world, cmd=["sh", "-c", FEW_DESCRIPTORS, sys.executable, str(probe.PLUGIN)], **MTLS)
    with patient_strangers(port_in(host.ask("start")["address"]), 300):
        for number in range(1, 7):
            probe.do(host, Probe.accept, number)
            host.ask("dial", broker=number)
            assert probe.do(host, Probe.echo, "x", broker=number, seconds=5) == "x"
        host.ask("accept", broker=100)
        assert probe.do(host, Probe.dial, [100, "x", 1]) == "the same"


def wrapped(world: World, change: str, script: Path | None = None) -> Path:
    """A script that makes the change and then runs the plugin."""
    path = world.folder / "wrapped.py"
    path.write_text(
        f"{change}\nimport runpy\nrunpy.run_path({str(script or world.kv_plugin)!r}, run_name='__main__')\n"
    )
    return path


THIEF = """
import os, selectors, socket, sys
folder, *names = sys.argv[1:]
os.setuid(65534)
os.mkdir(folder)
os.chmod(folder, 0o777)
selector = selectors.DefaultSelector()
for name in names:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, name))
    os.chmod(os.path.join(folder, name), 0o777)
    listener.listen()
    selector.register(listener, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        with key.fileobj.accept()[0] as connection:
            print("stolen:", connection.recv(4096), flush=True)
"""


def with_a_thief(world: World) -> tuple["subprocess.Popen[bytes]", Path]:
    """Play a cleaner that removes the folder of sockets, and another user who makes it again with the same names."""
    world.folder.parent.chmod(0o755)
    world.temporary.chmod(0o777)
    (folder,) = world.temporary.glob("*plugin*")
    names = [path.name for path in folder.iterdir()]
    assert names
    shutil.rmtree(folder)
    thief = world.run(sys.executable, "-c", THIEF, folder, *names)
    assert line(thief) == "ready\n"
    return thief, folder


def stolen(thief: "subprocess.Popen[bytes]") -> bytes:
    """The bytes that arrived at the thief's sockets."""
    thief.kill()
    return thief.communicate()[0]


@pytest.mark.grpcio_only("pygrpc-native's folder is there too")
def test_the_hosts_bytes_never_reach_another_users_socket(world: World) -> None:
    _, port, hosts = for_a_host(world)
    assert served(port, hosts)
    thief, folder = with_a_thief(world)
    for _ in range(3):
        served(port, hosts)
    assert stolen(thief) == b""
    shutil.rmtree(folder)


@pytest.mark.grpcio_only("pygrpc-native's folder is there too")
def test_another_users_folder_is_not_used(world: World) -> None:
    """The broker gets a new folder, with another name."""
    host = probe.start(world, **MTLS)
    thief, folder = with_a_thief(world)
    before = set(folder.iterdir())
    host.ask("accept", broker=1)
    assert probe.do(host, Probe.dial, [1, "x", 1]) == "the same"
    probe.do(host, Probe.accept, 2)
    host.ask("dial", broker=2)
    assert probe.do(host, Probe.echo, "x", broker=2) == "x"
    assert set(folder.iterdir()) == before
    assert len(list(world.temporary.glob("goplugin-*"))) == 2
    host.ask("kill")
    assert folder.exists()
    assert stolen(thief) == b""
    shutil.rmtree(folder)


def can_make_namespaces(*kinds: str) -> bool:
    return subprocess.run(["unshare", *kinds, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.grpcio_only("pygrpc-native makes its own folder")
@pytest.mark.parametrize(
    ("full", "asked"),
    [("size=4k", MTLS), ("nr_inodes=2", MTLS), ("nr_inodes=2", MULTIPLEX)],
    ids=["bytes, AutoMTLS", "inodes, AutoMTLS", "inodes, multiplexed"],
)
def test_a_full_temporary_folder(world: World, full: str, asked: dict[str, Any]) -> None:
    """If a folder has no bytes or no inodes left, the plugin takes the next one."""
    if not can_make_namespaces("--mount"):
        pytest.skip("this user may not mount")
    (world.folder / "full").mkdir()
    world.env |= {"TMPDIR": str(world.folder / "full"), "TEMP": str(world.temporary)}
    fill = "" if "inodes" in full else ' && dd if=/dev/zero of="$TMPDIR/all" bs=4k count=1 2>/dev/null'
    inside = f'mount -t tmpfs -o {full} none "$TMPDIR"{fill} && exec "$0" "$@"'
    host = world.host(cmd=["unshare", "--mount", "sh", "-c", inside, sys.executable, str(world.kv_plugin)], **asked)
    host.ask("start")
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX


def set_back(*folders: Path) -> None:
    """Make the folders an hour old."""
    for folder in folders:
        os.utime(folder, (time.time() - 3600,) * 2)


@pytest.mark.grpcio_only("pygrpc-native's folder is there too")
def test_a_later_plugin_removes_what_killed_ones_left(world: World) -> None:
    """It keeps the folders of running plugins, of other users and of other programs."""
    killed = world.started(**MTLS)
    (left,) = world.temporary.glob("*plugin*")
    processes = [world.plugin(), world.companion()]
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()
    assert eventually(lambda: killed.ask("exited")["exited"])
    assert left.exists()

    running = world.started(**MTLS)
    (used,) = set(world.temporary.glob("*plugin*")) - {left}
    of_another_user = left.with_name(left.name[:-1] + ("0" if left.name[-1] != "0" else "1"))
    of_another_program = world.temporary / "goplugin-notes"
    for folder in (of_another_user, of_another_program):
        folder.mkdir(mode=0o700)
    os.chown(of_another_user, 65534, 65534)
    set_back(left, used, of_another_user, of_another_program)

    world.started(**MTLS)
    assert eventually(lambda: not left.exists(), 3)
    assert used.exists()
    put(running, "k", b"v")
    for folder in (of_another_user, of_another_program):
        folder.rmdir()


def test_a_file_system_without_locks(world: World) -> None:
    """As some network file systems are."""
    change = "import fcntl\ndef no(*arguments): raise OSError(37, 'No locks available')\nfcntl.flock = no"
    host = world.started(wrapped(world, change), **MTLS)
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX


def pipes_of(pid: int) -> set[str]:
    """The system's names of the pipes that the process has open."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(fd))
    return {name for name in found if name.startswith("pipe:")}


LAST_LINES = "import goplugin, atexit, os\natexit.register(lambda: os.write(2, (b'x' * 999 + b'\\n') * 100))"


def test_the_hosts_stdout_ends_with_the_plugin(world: World) -> None:
    """Even while the companion still holds last lines for a host that does not read its log."""
    process = by_hand.run(world, script=wrapped(world, LAST_LINES))
    line(process)
    companion = world.companion()
    assert process.stdout
    stdout = f"pipe:[{os.fstat(process.stdout.fileno()).st_ino}]"
    process.terminate()
    assert process.wait(5) == 0
    assert companion.is_running()
    assert stdout not in pipes_of(companion.pid)
    assert process.stdout.read() == b""
    assert companion.is_running()
    assert process.stderr
    assert process.stderr.read().count(b"x" * 999) == 100


@pytest.mark.threads_only("a script for threads")
def test_the_hosts_stdout_ends_when_the_plugin_begins_to_leave(world: World) -> None:
    """stdout ends while a call is still running."""
    process = by_hand.run(world, script=probe.PLUGIN, PROBE_COOKIE="probe")
    with grpc.insecure_channel(line(process).split("|")[3]) as channel:
        sleep: Any = channel.unary_unary("/probe.Probe/sleep")
        call = sleep.future(b"1", timeout=5)
        assert not eventually(call.done, 0.3)
        process.terminate()
        assert process.stdout
        assert process.stdout.read() == b""
        assert not call.done()
        assert process.poll() is None
        assert call.result() == b"null"


def test_descriptors_that_the_host_passed_are_the_plugins_alone(world: World) -> None:
    """With Go's ExtraFiles, the host sees the end of a pipe as soon as the plugin closes it."""
    ours, theirs = os.pipe()
    script = wrapped(world, f"import goplugin, os\nos.write({theirs}, b'hello')\nos.close({theirs})")
    env = {**world.env, **HOSTS_VARIABLES}
    process = world.run(sys.executable, script, env=env, pass_fds=[theirs], stderr=subprocess.DEVNULL)
    os.close(theirs)
    try:
        line(process)
        assert os.read(ours, 100) == b"hello"
        assert select.select([ours], [], [], 2)[0], "another process still holds the pipe"
        assert os.read(ours, 100) == b""
        assert world.companion().is_running()
    finally:
        os.close(ours)


CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def container() -> list[str]:
    """A command prefix that makes the command process 1 of a container."""
    if not can_make_namespaces(*CONTAINER[1:]):
        pytest.skip("this user may not make the namespaces of a container")
    return CONTAINER


@pytest.mark.parametrize("auto_mtls", [False, True], ids=["without TLS", "AutoMTLS"])
def test_nothing_defunct_is_left_to_a_host_that_is_process_1(
    world: World, host_binary: Path, container: list[str], auto_mtls: bool
) -> None:
    """Such a host waits only for the plugin that it started."""
    binary = world.folder / "host"
    binary.write_text(f'#!/bin/sh\nexec {shlex.join(container)} {host_binary} "$@"\n')
    binary.chmod(0o755)
    world._binary = binary
    host = world.started(auto_mtls=auto_mtls)
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9
    (process_1,) = psutil.Process(host.process.pid).children()
    assert eventually(lambda: not world.companions(), 3)
    assert eventually(lambda: not process_1.children(), 3), [child.status() for child in process_1.children()]


PROCESS_1 = """
import os, subprocess, sys, time
for _ in range(3):
    plugin = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert plugin.stdout.readline().count(b"|") == 4
    plugin.terminate()
    plugin.communicate()
end = time.monotonic() + 3
while len([name for name in os.listdir("/proc") if name.isdigit()]) > 1 and time.monotonic() < end:
    time.sleep(0.01)
print(*[open(f"/proc/{name}/stat").read().split()[1:3] for name in os.listdir("/proc") if name.isdigit()])
"""


def test_starts_do_not_add_up_in_a_container(world: World, container: list[str]) -> None:
    env = {**world.env, **HOSTS_VARIABLES}
    process = world.run(*container, sys.executable, "-c", PROCESS_1, sys.executable, world.kv_plugin, env=env)
    out, err = process.communicate(timeout=15)
    assert not err
    assert out.count(b"[") == 1, out


@pytest.mark.grpcio_only("pygrpc-native makes its own folder")
@pytest.mark.parametrize("end", ["SIGTERM", "sys.exit"])
def test_the_last_lines_of_process_1_arrive(world: World, container: list[str], end: str) -> None:
    """However late the host reads them, and although the system kills what is left in the container."""
    script = wrapped(world, LAST_LINES if end == "SIGTERM" else f"{LAST_LINES}\nraise SystemExit(3)")
    process = world.run(*container, sys.executable, script, env={**world.env, **HOSTS_VARIABLES})
    assert line(process)
    if end == "SIGTERM":
        world.plugin().terminate()
    assert process.stderr
    assert select.select([process.stderr], [], [], 5)[0]
    eventually(lambda: process.poll() is not None, 0.2)
    _, err = process.communicate(timeout=5)
    assert err.count(b"x" * 999) == 100
    assert process.returncode == (0 if end == "SIGTERM" else 3)


@pytest.mark.grpcio_only("pygrpc-native makes its own folder")
def test_process_1_can_wait_for_its_children(world: World, container: list[str]) -> None:
    """Its os.wait() returns for its children, and not for the companion, which is still running."""
    host = probe.start(world, cmd=[*container, sys.executable, str(probe.PLUGIN)])
    assert probe.act(host, children.wait_for_any) is True
    assert probe.act(host, children.wait_for_any) is True
    assert host.ask("kill")["seconds"] < 1.9


def test_each_connection_of_tls_1_2_shows_its_certificate(world: World) -> None:
    """No session is resumed, by a ticket or otherwise."""
    _, port, hosts = for_a_host(world)
    hosts.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    for _ in range(3):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=15) as plain,
            hosts.wrap_socket(plain, session=session) as connection,
        ):
            connection.sendall(HTTP2)
            assert connection.recv(1)
            assert not connection.session_reused
            session = connection.session
            assert session is None or not session.has_ticket


@pytest.mark.grpcio_only("pygrpc-native makes its own folder")
@pytest.mark.parametrize("asked", [MTLS, MULTIPLEX], ids=["AutoMTLS", "multiplexed"])
def test_a_temporary_folder_whose_name_is_not_utf_8(world: World, asked: dict[str, Any]) -> None:
    """The plugin takes the next folder."""
    strange = world.folder / os.fsdecode(b"caf\xe9")
    strange.mkdir()
    world.env |= {"TMPDIR": str(strange), "TEMP": str(world.temporary)}
    host = world.started(**asked)
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    host.ask("kill")
    assert not list(strange.iterdir())


def test_without_dev_null(world: World) -> None:
    """As in a bare container. /dev/urandom stays, because grpc needs it."""
    if not can_make_namespaces("--mount"):
        pytest.skip("this user may not mount")
    inside = 'mount -t tmpfs none /mnt && cp -a /dev/urandom /mnt && mount --move /mnt /dev && exec "$0" "$@"'
    host = world.host(cmd=["unshare", "--mount", "sh", "-c", inside, sys.executable, str(world.kv_plugin)])
    host.ask("start")
    put(host, "k", b"v")


@pytest.mark.plain_only("TLS ends in the companion")
@pytest.mark.unmultiplexed("streams end in the companion")
def test_kill_does_not_wait_for_a_companion_that_is_stopped(world: World) -> None:
    host = world.started()
    put(host, "k", b"v")
    companion = world.companion()
    companion.suspend()
    rescue = threading.Timer(4, companion.resume)
    rescue.start()
    try:
        assert host.ask("kill")["seconds"] < 1.9
    finally:
        rescue.cancel()
        rescue.join()
    assert world.gone()
