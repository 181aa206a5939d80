"""The plugin leaves and says why, even when the companion is gone or a step of leaving fails."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import probe
import psutil
import pytest
from actions import Call, own_process
from by_hand import line, run
from certificates import certificate_in, make_certificate
from harness import ROOT, CallError, Host, World, eventually, is_alive
from probe_plugin import Probe

BEFORE_PLUGIN = """
import goplugin
import pathlib, runpy, sys, time
while not pathlib.Path("go on").exists(): time.sleep(0.01)
SAYS
runpy.run_path(PLUGIN, run_name="__main__")
"""


def kill_companion(world: World) -> None:
    companion = world.companion()
    companion.kill()
    assert eventually(lambda: not is_alive(companion), 5)


@pytest.mark.parametrize("says", ["pass", "print('hello')", "sys.stderr.write('hello')"])
def test_without_its_companion_the_plugin_does_not_start(world: World, says: str, tmp_path: Path) -> None:
    """The companion is killed during the plugin's import. The log says so, whatever the plugin prints."""
    script = world.folder / "before.py"
    script.write_text(BEFORE_PLUGIN.replace("SAYS", says).replace("PLUGIN", repr(str(world.kv_plugin))))
    asked = {"PLUGIN_MULTIPLEX_GRPC": "true"} if world.multiplexed else {}
    if world.auto_mtls:
        asked["PLUGIN_CLIENT_CERT"] = certificate_in(make_certificate(tmp_path, "host"))
    process = run(world, script=script, **asked)
    world.companion()
    time.sleep(0.5)  # by now the companion has made the certificate, and the plugin knows the folder
    kill_companion(world)
    (world.folder / "go on").touch()
    _, err = process.communicate(timeout=10)
    assert process.returncode > 0
    records = [json.loads(text) for text in err.decode().splitlines() if text.startswith("{")]
    errors = [record["@message"] for record in records if record["@level"] == "error"]
    assert any("the companion process died" in message for message in errors)
    assert "BrokenPipeError" not in err.decode()


@pytest.mark.grpcio_only("pygrpc-native's folder stays behind")
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.windows
def test_the_plugin_leaves_when_its_companion_dies(world: World, busy: bool) -> None:
    """The plugin cannot work without its companion."""
    host = probe.start(world)
    if busy:
        host.begin("call", method="/probe.Probe/sleep", message=b"30")
    kill_companion(world)
    assert world.gone()
    assert host.logged("the companion process died", **{"@level": "error"})


CLOSES = {
    "an old habit": own_process.close_3_to_5,
    "all pipes": own_process.close_pipes,
    "all": own_process.close_all,
}


def close_descriptors(host: Host, action: Callable[[Call], None]) -> None:
    """Run the action; its answer is lost if it closes the connection to the host."""
    with contextlib.suppress(CallError):
        probe.act(host, action, seconds=3)


@pytest.mark.grpcio_only("pygrpc-native has other descriptors")
@pytest.mark.parametrize("closes", CLOSES)
def test_sigterm_ends_a_plugin_that_closed_what_is_not_its_own(world: World, closes: str) -> None:
    """As old daemons did. The plugin may need some of those descriptors in order to leave."""
    host = probe.start(world)
    plugin = world.plugin()
    close_descriptors(host, CLOSES[closes])
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have left already
        plugin.send_signal(signal.SIGTERM)
    assert world.gone()
    remove_sockets(world)


@pytest.mark.grpcio_only("pygrpc-native has other descriptors")
@pytest.mark.parametrize("closes", ["an old habit", "all pipes"])
def test_shutdown_ends_a_plugin_that_closed_what_is_not_its_own(world: World, closes: str) -> None:
    """The host does not have to kill it."""
    host = probe.start(world)
    close_descriptors(host, CLOSES[closes])
    assert host.ask("kill")["seconds"] < 4
    assert world.gone()
    assert not host.logged_now("plugin failed to exit gracefully")
    remove_sockets(world)


def remove_sockets(world: World) -> None:
    """A plugin that has closed its connection to the companion may leave the folder of sockets behind."""
    for folder in world.temporary.glob("*plugin*"):
        shutil.rmtree(folder)


UNPRIVILEGED = """
import goplugin, os
class Plugin(goplugin.Plugin):
    def listen(self, server):
        line = super().listen(server)
        os.setuid(65534)
        return line
goplugin.Plugin = Plugin
import plugin
plugin.main()
"""


@pytest.mark.threads_only("a script for threads")
@pytest.mark.parametrize("reason", ["without privileges", "the folder is a file"])
def test_a_socket_that_cannot_be_removed_does_not_keep_the_plugin(world: World, reason: str) -> None:
    if reason == "without privileges" and os.getuid():
        pytest.skip("only root has privileges to drop")
    sockets = world.folder / "sockets"
    sockets.mkdir(mode=0o755)
    script = ROOT / "plugin.py"
    if reason == "without privileges":
        script = world.folder / "unprivileged.py"
        script.write_text(UNPRIVILEGED)
    process = run(world, script=script, PLUGIN_UNIX_SOCKET_DIR=str(sockets))
    assert "|unix|" in line(process)
    if reason == "the folder is a file":
        sockets.rename(world.folder / "moved")
        sockets.touch()
    process.send_signal(signal.SIGTERM)
    process.wait(4)
    assert world.gone()
    remove_sockets(world)


def test_a_pipe_of_the_plugins_own_in_the_place_of_stderr(world: World) -> None:
    """Nobody reads that pipe. The companion is still there, so the plugin stays."""
    host = probe.start(world)
    assert probe.act(host, own_process.log_into_a_pipe_that_nobody_reads, seconds=5) == "it went on"
    probe.do(host, Probe.log, [40, "and still logs", {}])
    assert host.logged("and still logs", **{"@level": "error"})
    assert not host.logged_now("the companion process died")
    assert host.ask("kill")["seconds"] < 1.9


@pytest.mark.grpcio_only("pygrpc-native has other descriptors")
def test_other_files_in_the_place_of_its_pipes(world: World) -> None:
    """Such files are always readable. The plugin leaves instead of polling them for ever."""
    host = probe.start(world)
    close_descriptors(host, own_process.open_files_in_place_of_pipes)
    assert world.gone()
    remove_sockets(world)
