"""From the start of the script to its handshake line, as a host and as a person see it."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from typing import Any

import probe
import pytest
from by_hand import HOSTS_VARIABLES, end, line, run
from harness import PATIENCE, CallError, World
from kv import put
from probe_plugin import Probe

from goplugin import HandshakeConfig, environment
from goplugin.handshake import handshake_line


@pytest.mark.windows
def test_the_line_is_exact_and_all_there_is(world: World) -> None:
    process = run(world)
    match = re.fullmatch(r"1\|1\|tcp\|127\.0\.0\.1:(\d+)\|grpc\n", line(process))
    assert match
    assert 10000 <= int(match[1]) <= 25000
    assert end(process)[:2] == (0, "")


def is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return True
    return False


def test_two_plugins_never_share_a_port(world: World) -> None:
    """Sixteen plugins share a range of sixteen ports: each gets one, and a seventeenth a clear error."""
    # A range that nothing else uses: not the ports that the hosts of other tests give their plugins, not the ports that
    # the system gives to programs that name none, and not the range of this test in another pytest process.
    first = 25008 + 800 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    low = next(low for low in range(first, first + 800, 16) if all(is_free(port) for port in range(low, low + 16)))

    def start() -> "subprocess.Popen[bytes]":
        return run(world, PLUGIN_MIN_PORT=str(low), PLUGIN_MAX_PORT=str(low + 15))

    processes = [start() for _ in range(16)]
    addresses = [line(process).split("|")[3] for process in processes]
    assert len(set(addresses)) == 16
    late = start()
    out, err = late.communicate()
    assert late.returncode == 1
    reason = f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={low} to PLUGIN_MAX_PORT={low + 15} is free"
    assert out.decode().startswith(f"goplugin: This plugin cannot listen: {reason}")
    assert reason in json.loads(err)["@message"]
    for process in processes:
        assert end(process)[0] == 0


def test_any_port_where_the_host_names_none(world: World) -> None:
    process = run(world, PLUGIN_MIN_PORT="", PLUGIN_MAX_PORT="")
    assert int(line(process).split("|")[3].split(":")[1]) > 0


@pytest.mark.parametrize(
    ("low", "high", "error"),
    [
        ("200", "100", "PLUGIN_MIN_PORT=200 is greater than PLUGIN_MAX_PORT=100"),
        ("10000", "", "PLUGIN_MIN_PORT=10000 is greater than PLUGIN_MAX_PORT=0"),
        ("ten", "100", "PLUGIN_MIN_PORT='ten' is not a port"),
        ("1_0", "100", "PLUGIN_MIN_PORT='1_0' is not a port"),
        ("-1", "100", "PLUGIN_MIN_PORT='-1' is not a port"),
        ("1" * 5000, "100", "is not a port"),
        ("10000", "65536", "PLUGIN_MAX_PORT='65536' is not a port"),
    ],
)
def test_an_invalid_range(low: str, high: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        environment.parse({"PLUGIN_MIN_PORT": low, "PLUGIN_MAX_PORT": high})


@pytest.mark.windows
def test_an_invalid_range_is_a_clear_error(world: World) -> None:
    process = run(world, PLUGIN_MIN_PORT="ten")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out.decode().startswith("goplugin: This plugin cannot start: PLUGIN_MIN_PORT='ten' is not a port")
    record = json.loads(err)
    assert record["@level"] == "error"
    assert "PLUGIN_MIN_PORT='ten' is not a port" in record["@message"]
    assert "Traceback" not in err.decode()


@pytest.mark.parametrize("value", [None, "", "goodbye"])
@pytest.mark.windows
def test_started_by_a_person(world: World, value: str | None) -> None:
    env = {**world.env, **({} if value is None else {"BASIC_PLUGIN": value})}
    process = world.run(sys.executable, world.kv_plugin, env=env)
    out, err = process.communicate(timeout=PATIENCE)
    text = err.decode().replace(os.linesep, "\n")
    assert (process.returncode, out) == (1, b"")
    assert "This is a go-plugin plugin; its host starts it." in text
    assert 'KV_PLUGIN="python plugin.py"\n    go run github.com/hashicorp/go-plugin/examples/grpc@v1.8.0' in text
    assert "Traceback" not in text
    assert len(text.splitlines()) < 13


@pytest.mark.parametrize(
    ("served", "offered", "chosen"),
    [
        ("1", "1", 1),
        ("5,6", "6,5", 6),
        ("6,5", "5,6", 6),
        ("5,6", "4,5", 5),
        ("5,6", "7", 5),
        ("5,6", "", 5),
        ("5,6", "+6", 6),
        ("5,6", "six,6", 6),
        ("5,6", " 6,1_0", 5),
        ("0,2", "2,0,1", 2),
        ("5,6", "9" * 5000 + ",6", 6),
    ],
)
def test_app_protocol_version(served: str, offered: str, chosen: int) -> None:
    settings = environment.parse({"PLUGIN_PROTOCOL_VERSIONS": offered})
    config = HandshakeConfig([int(version) for version in served.split(",")], "key", "value")
    assert config.choose_version(settings.protocol_versions) == chosen
    assert bool(settings.ignored) == bool(re.search("six|_|9999", offered))
    assert all("is not a number" in text for text in settings.ignored)


@pytest.mark.parametrize("config", [([], "key", "value"), ([1], "", "value"), ([1], "key", "")])
def test_a_config_that_is_not_complete(config: Any) -> None:
    with pytest.raises(ValueError, match="HandshakeConfig"):
        HandshakeConfig(*config).check()


def test_handshake_line() -> None:
    address = ("tcp", "127.0.0.1:10001")
    assert handshake_line(1, *address) == "1|1|tcp|127.0.0.1:10001|grpc"
    assert handshake_line(5, *address, "CERT") == "1|5|tcp|127.0.0.1:10001|grpc|CERT"
    assert handshake_line(5, *address, "", multiplex=True) == "1|5|tcp|127.0.0.1:10001|grpc||true"
    assert handshake_line(6, "unix", "/tmp/x", "CERT", multiplex=True) == "1|6|unix|/tmp/x|grpc|CERT|true"


def test_the_host_says_that_no_version_is_common(world: World) -> None:
    host = world.host(versions=[4])
    with pytest.raises(CallError, match="incompatible API version with plugin. Plugin version: 1"):
        host.ask("start")


@pytest.mark.windows
def test_stray_output_never_breaks_the_handshake(world: World) -> None:
    """Neither output at import (print, write(1), a C library, a child, a shell) nor 1 MB of it later."""
    world.env["PROBE_NOISY"] = "1"
    host = probe.start(world)
    for text in ("stray print", "stray write", "stray line of a C", "stray line of a child", "stray line of a shell"):
        assert host.logged(text), text
    probe.do(host, Probe.write_fd, [1, "x" * 70_000 + "\n", 15])
    assert probe.do(host, Probe.echo, "still here") == "still here"


def test_a_tool_that_imports_the_plugin_sees_nothing_happen(world: World) -> None:
    look = "(sys.stdout, sys.stderr, sys.excepthook, signal.getsignal(signal.SIGINT), os.readlink('/proc/self/fd/1'))"
    code = f"import os, sys, signal; before = {look}; import plugin; print(before == {look}, threading.active_count())"
    process = world.run(sys.executable, "-c", f"import threading; {code}")
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == (b"True 1\n", b"")


@pytest.mark.windows
def test_a_child_that_imports_goplugin_is_no_plugin(world: World) -> None:
    """It inherits neither the host's variables nor the plugin's changes to stdout."""
    child = "import goplugin, signal; print('result', signal.getsignal(signal.SIGINT).__name__)"
    code = f"import goplugin, os, subprocess, sys; out = subprocess.check_output([sys.executable, '-c', {child!r}])"
    process = world.run(
        sys.executable,
        "-c",
        f"{code}; sys.stderr.write(out.decode()); os._exit(0)",
        env={**world.env, **HOSTS_VARIABLES},
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, err.split()) == (b"", [b"result", b"default_int_handler"])


@pytest.mark.parametrize("closed", ["0<&-", "2>&-"])
def test_started_with_a_closed_descriptor(world: World, closed: str) -> None:
    """The saved copy of stdout does not become descriptor 0 or 2, where stray output would reach it."""
    world.env["PROBE_NOISY"] = "1"
    command = f"{shlex.join([sys.executable, str(probe.PLUGIN)])} {closed}"
    host = probe.start(world, cmd=["sh", "-c", command])
    probe.do(host, Probe.write_fd, [1, "stray\n", 1])
    assert probe.do(host, Probe.echo, 1) == 1


@pytest.mark.windows
def test_a_line_that_would_end_the_host(world: World) -> None:
    """The host panics on JSON whose "@message" is not a string. It never takes the plugin's output for such JSON."""
    world.env["PROBE_NOISY"] = "json"
    host = probe.start(world)
    assert host.logged('> {"@message": 1}')
    assert host.logged('> {"@timestamp": 2}')
    for number in (3, 4, 5):
        assert host.logged(f'{{"@message": {number}}}')
    assert probe.do(host, Probe.echo, 1) == 1
    host.ask("kill")
    assert host.logged('> {"@message": 6}')


@pytest.mark.windows
def test_arguments_of_the_host_are_left_alone(world: World) -> None:
    host = world.started(cmd=[sys.executable, str(world.kv_plugin), "--config", "file", "--log-level=debug", "x"])
    put(host, "k", b"v")


@pytest.mark.windows
def test_stdin_is_left_alone(world: World) -> None:
    """The host passes its own stdin on; its contents are not for goplugin."""
    read, write = os.pipe()
    os.write(write, b"for the plugin's own code\n")
    process = world.run(sys.executable, world.kv_plugin, stdin=read, env={**world.env, **HOSTS_VARIABLES})
    line(process)
    assert end(process)[0] == 0
    assert os.read(read, 100) == b"for the plugin's own code\n"
    os.close(read)
    os.close(write)


@pytest.mark.windows
def test_health(world: World) -> None:
    host = world.started()
    host.ask("ping")
    assert host.call("/grpc.health.v1.Health/Check", b"\x0a\x06plugin") == b"\x08\x01"
    with pytest.raises(CallError, match="NotFound"):
        host.call("/grpc.health.v1.Health/Check", b"\x0a\x06nobody")
