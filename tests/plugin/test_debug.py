"""A developer starts the plugin with --debug, and hosts attach to it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, World
from kv import SUFFIX, get, put

from docs import console_block


def debug(world: World, *arguments: str) -> tuple["subprocess.Popen[bytes]", dict[str, Any]]:
    """Start the plugin as a developer does. Returns its process, and what it prints for the host."""
    process = world.run(sys.executable, world.kv_plugin, "--debug", *arguments)
    assert process.stdout
    return process, json.loads(process.stdout.readline())


@pytest.mark.grpcio_only("a killed plugin leaves pygrpc-native's folder behind")
@pytest.mark.windows
def test_what_the_host_needs(world: World) -> None:
    process, printed = debug(world, "registry.terraform.io/me/kv")
    address = printed["registry.terraform.io/me/kv"]["Addr"]["String"]
    assert printed == {
        "registry.terraform.io/me/kv": {
            "Protocol": "grpc",
            "ProtocolVersion": 1,
            "Pid": process.pid,
            "Test": True,
            "Addr": {"Network": "tcp", "String": address},
        }
    }


def test_what_readme_shows(world: World) -> None:
    block = console_block("--debug")
    command, line = block.splitlines()
    process = world.run("sh", "-c", f"cd '{ROOT}' && PATH={Path(sys.executable).parent}:$PATH exec {command[2:]}")
    assert process.stdout
    printed = process.stdout.readline().decode()
    printed = re.sub(r'"Pid":\d+', '"Pid":4711', printed)
    assert re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:40013", printed) == line + "\n"


@pytest.mark.grpcio_only("a killed plugin leaves pygrpc-native's folder behind")
def test_with_a_hosts_variables_too(world: World) -> None:
    """A developer may choose the version or the kind of address, as a host does."""
    world.env |= {"PLUGIN_PROTOCOL_VERSIONS": "1", "PLUGIN_UNIX_SOCKET_DIR": str(world.folder)}
    _, printed = debug(world)
    assert printed["plugin"]["Addr"]["Network"] == "unix"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_hosts_attach_together_and_in_turn(world: World, stop: signal.Signals) -> None:
    process, printed = debug(world)
    config = printed["plugin"]
    first, second = world.host(reattach=config), world.host(reattach=config)
    for host in (first, second):
        host.ask("start")
    put(first, "k", b"v")
    assert get(second, "k") == b"v" + SUFFIX
    first.close()  # its Kill() leaves the plugin alone, because "Test" is true
    assert get(second, "k") == b"v" + SUFFIX
    second.process.kill()
    third = world.host(reattach=config)
    third.ask("start")
    third.ask("ping")
    assert get(third, "k") == b"v" + SUFFIX
    process.send_signal(stop)
    assert process.wait(5) == 0


def test_a_host_that_is_not_testing_may_end_it(world: World) -> None:
    process, printed = debug(world)
    host = world.host(reattach={**printed["plugin"], "Test": False})
    host.ask("start")
    killed = host.begin("kill")
    assert process.wait(5) == 0
    killed()


def test_under_a_debugger(world: World) -> None:
    """pdb has the terminal: the developer keeps stdin, stdout and Ctrl-C."""
    ours = ["--"] * (sys.version_info < (3, 14))  # pdb of 3.13 refuses --debug without "--"; pdb of 3.14 refuses "--"
    command = [sys.executable, "-m", "pdb", "-c", "continue", *ours, str(world.kv_plugin), "--debug"]
    process = world.run(*command, stdin=subprocess.PIPE)
    assert process.stdout
    printed = json.loads(process.stdout.readline())
    host = world.host(reattach=printed["plugin"])
    host.ask("start")
    put(host, "k", b"v")
    host.close()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(b"quit\n", timeout=10)
    assert b"The program finished and will be restarted" in out


def test_it_logs_for_a_person(world: World) -> None:
    process, _ = debug(world)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert err.decode() == f"DEBUG:goplugin:{world.serves}\nDEBUG:goplugin:leaving: Ctrl-C\n"


@pytest.mark.threads_only("the test has its own script")
@pytest.mark.grpcio_only("the test has its own script")
@pytest.mark.parametrize("level", ["", "WARNING"])
def test_the_plugins_records_for_a_person(world: World, level: str) -> None:
    """Records from info on, as under a host. A level that the plugin's code sets stays."""
    script = world.folder / "plugin.py"
    lines = ["import goplugin, logging", f"level = {level!r}", "if level:", "    logging.root.setLevel(level)"]
    lines += ["goplugin.Plugin(goplugin.HandshakeConfig([1], 'A', 'b'))"]
    lines += [f"logging.getLogger('own').{name}('said')" for name in ("debug", "info", "warning")]
    script.write_text("\n".join(lines))
    _, err = world.run(sys.executable, script, "--debug").communicate(timeout=30)
    said = [line for line in err.decode().splitlines() if ":own:" in line]
    assert said == ["INFO:own:said"] * (not level) + ["WARNING:own:said"]
