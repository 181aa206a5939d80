"""Other things that a host may ask for: reflection, Unix sockets, versions, streams."""

import grp
import json
import os
import subprocess
import time
from pathlib import Path

import probe
import pytest
from harness import CallError, World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe


@pytest.fixture(scope="session")
def grpcurl(programs: Path) -> Path:
    package = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
    subprocess.run(["go", "install", package], env={**os.environ, "GOBIN": str(programs)}, check=True)
    return programs / "grpcurl"


@pytest.mark.grpcio_only("reflection does not see pygrpc-native's services")
@pytest.mark.plain_only("grpcurl has no certificate; test_automtls.py calls reflection with TLS")
def test_reflection_lists_and_calls_every_service(world: World, grpcurl: Path) -> None:
    host = world.host()
    address = host.ask("start")["address"]

    def run(*arguments: str, data: str = "") -> str:
        command = [grpcurl, "-plaintext", "-max-time", "5", *(["-d", data] if data else []), address, *arguments]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        return done.stdout + done.stderr

    services = run("list").split()
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "plugin.GRPCBroker",
        "plugin.GRPCController",
        "plugin.GRPCStdio",
        "proto.KV",
    ]
    for service in services:
        assert f"{service} is a service:" in run("describe", service)
    run("proto.KV/Put", data='{"key": "k", "value": "d29ybGQ="}')
    assert (world.folder / "kv_k").read_bytes() == b"world" + SUFFIX
    assert json.loads(run("proto.KV/Get", data='{"key": "k"}')) == {
        "value": "d29ybGQKCldyaXR0ZW4gZnJvbSBwbHVnaW4tcHl0aG9u"
    }
    assert json.loads(run("grpc.health.v1.Health/Check", data='{"service": "plugin"}')) == {"status": "SERVING"}
    assert "DeadlineExceeded" in run("plugin.GRPCStdio/StreamStdio")
    assert run("plugin.GRPCBroker/StartStream") == ""
    assert run("plugin.GRPCController/Shutdown") == "{}\n"
    assert eventually(lambda: not world.plugins())


def test_unix_socket_for_a_container_runner(world: World) -> None:
    host = world.host(runner=True)
    answer = host.ask("start")
    assert answer["network"] == "unix"
    path = Path(answer["address"])
    assert path.is_socket()
    assert path.parent.parent == world.folder
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    host.ask("ping")
    assert host.ask("kill")["seconds"] < 1.9
    assert not path.exists()


def test_broker_over_unix_sockets(world: World) -> None:
    host = probe.start(world, runner=True)
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    host.ask("accept", broker=2)
    assert probe.do(host, Probe.dial, [2, "x", 1]) == "the same"
    (folder,) = world.folder.iterdir()
    # The sockets of the plugin, of its accept() and of the host's. Under multiplexing there is only the first.
    assert len(list(folder.iterdir())) == (1 if world.multiplexed else 3)
    probe.do(host, Probe.close, 1)
    assert len(list(folder.iterdir())) == (1 if world.multiplexed else 2)


@pytest.mark.parametrize("by", ["name", "gid"])
def test_group_may_write_to_the_socket(world: World, by: str) -> None:
    """Uses a group that the user may give a file to, and not the user's first group if there is another."""
    groups = [entry.gr_gid for entry in grp.getgrall()] if os.getuid() == 0 else os.getgroups()
    gid = next((group for group in groups if group != os.getgid()), os.getgid())
    host = world.host(runner=True, group=grp.getgrgid(gid).gr_name if by == "name" else str(gid))
    path = Path(host.ask("start")["address"])
    assert path.stat().st_gid == gid
    assert path.stat().st_mode & 0o777 == 0o660
    put(host, "k", b"v")


@pytest.mark.parametrize(
    ("folder", "group", "error"),
    [
        ("x" * 100, "", "AF_UNIX path too long"),
        ("missing", "", "No such file or directory"),
        ("with|bar", "", "has a character that the handshake line cannot carry"),
        ("", "no-such-group", "PLUGIN_UNIX_SOCKET_GROUP='no-such-group': no such group"),
    ],
)
def test_unusable_socket_settings_are_a_clear_error(world: World, folder: str, group: str, error: str) -> None:
    path = world.folder / folder
    if folder != "missing":
        path.mkdir(exist_ok=True)
    world.env |= {"PLUGIN_UNIX_SOCKET_DIR": str(path), "PLUGIN_UNIX_SOCKET_GROUP": group}
    host = world.host()
    with pytest.raises(CallError, match="Unrecognized remote plugin message|plugin exited"):
        host.ask("start")
    record = host.logged("This plugin cannot listen")
    assert record
    assert error in record["@message"]
    if path.exists():
        assert not list(path.iterdir())


@pytest.mark.parametrize(("offered", "chosen"), [([5, 6], 6), ([4, 5], 5), ([6, 7], 6)])
def test_versions_with_services_of_their_own(world: World, offered: list[int], chosen: int) -> None:
    """As go-plugin's VersionedPlugins: the plugin's services depend on the negotiated version."""
    world.env["PROBE_VERSIONS"] = "5,6"
    host = probe.host(world, versions=offered)
    assert host.ask("start")["version"] == chosen
    assert host.call(f"/probe.V{chosen}/version", b"null") == b"%d" % chosen
    with pytest.raises(CallError, match="Unimplemented"):
        host.call(f"/probe.V{11 - chosen}/version", b"null")


def test_every_kind_of_stream(world: World) -> None:
    host = probe.start(world)

    def talk(stream: int, method: str, *messages: bytes) -> list[bytes]:
        host.ask("open", stream=stream, method=f"/probe.Streams/{method}")
        for message in messages:
            host.ask("send", stream=stream, message=message)
        host.ask("half_close", stream=stream)
        answers = []
        while "message" in (answer := host.ask("recv", stream=stream)):
            answers.append(answer["message"])
        return answers

    assert talk(1, "count", b"1000") == [b"%d" % number for number in range(1000)]
    assert talk(2, "sum", b"1", b"2", b"39") == [b"42"]
    assert talk(3, "chat", b"a", b"b") == [b"you said a", b"you said b"]


def test_200_open_streams_do_not_starve_calls(world: World) -> None:
    host = probe.start(world)
    for stream in range(200):
        probe.open_stream(host, stream, "/probe.Streams/hold")
    for stream in range(200):
        assert host.ask("recv", stream=stream)["message"] == b"open"
    for number in range(20):
        assert probe.do(host, Probe.echo, number, seconds=5) == number
    probe.do(host, Probe.print, ["stdout", "printed", 1, 1])
    assert eventually(lambda: host.ask("stdio")["stdout"] == b"printed")
    for stream in range(100):
        host.ask("cancel", stream=stream)
    assert probe.do(host, Probe.echo, 1) == 1
    assert host.ask("kill")["seconds"] < 1.9


@pytest.mark.plain_only("go-plugin cannot reattach with AutoMTLS")
def test_host_leaves_in_the_middle_of_streams(world: World) -> None:
    """A plugin that stays serves the next host as if nothing had happened."""
    world.env["PROBE_STAYS"] = "1"
    host = probe.start(world)
    address = host.ask("start")["address"]
    for stream, method in enumerate(("count", "sum", "chat", "hold")):
        host.ask("open", stream=stream, method=f"/probe.Streams/{method}")
        host.ask("send", stream=stream, message=b"1000000")
    host.begin("call", method="/probe.Probe/print_bytes", message=b"[1, 3000000]")
    time.sleep(0.2)
    host.process.kill()
    plugin = world.plugin()
    config = {"Protocol": "grpc", "ProtocolVersion": 1, "Pid": plugin.pid}
    config["Addr"] = {"Network": "tcp", "String": address}
    second = probe.host(world, reattach=config)
    second.ask("start")
    assert probe.do(second, Probe.echo, "there") == "there"
    second.ask("accept", broker=1)
    assert probe.do(second, Probe.dial, [1, "x", 1]) == "the same"
    probe.do(second, Probe.print, ["stderr", "printed", 1, 1])
    assert eventually(lambda: second.ask("stdio")["stderr"] == b"printed")
    second.ask("kill")
