"""Unusual machines and settings: the plugin starts wherever a Go plugin would; elsewhere it says why it cannot."""

import subprocess
import sys
import time

import probe
import pytest
from authors import WITHOUT_FOLDERS
from by_hand import HOSTS_VARIABLES, line
from harness import ROOT, CallError, World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe

PLUGIN = str(ROOT / "plugin.py")


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_optimized(world: World, option: str) -> None:
    host = world.host(cmd=[sys.executable, option, PLUGIN])
    host.ask("start")
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX


@pytest.mark.parametrize("variable", ["SSLKEYLOGFILE", "OPENSSL_CONF"])
def test_settings_of_openssl(world: World, variable: str) -> None:
    broken = world.folder / "broken"
    broken.write_text("openssl_conf = [ nothing of this\n\0")
    world.env[variable] = str(broken if variable == "OPENSSL_CONF" else world.folder / "missing" / "keys")
    host = world.started()
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX


NO_FORK = "import os\ndef fork(): raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = fork\n"
NO_SOCKETPAIR = "import socket\ndef pair(): raise PermissionError(1, 'not permitted')\nsocket.socketpair = pair\n"


@pytest.mark.parametrize("refused", [NO_FORK, NO_SOCKETPAIR], ids=["fork", "socketpair"])
def test_no_companion_to_be_had(world: World, refused: str) -> None:
    script = world.folder / "refused.py"
    script.write_text(refused + "import plugin\nplugin.main()\n")
    host = world.host(script)
    with pytest.raises(
        CallError, match="goplugin: This plugin cannot start its companion process: .*([Nn]ot permitted|Resource)"
    ):
        host.ask("start")
    assert host.logged("This plugin cannot start its companion process", **{"@level": "error"})
    assert world.gone()
    assert not list(world.temporary.iterdir())


@pytest.mark.grpcio_only("the script breaks grpcio")
def test_grpc_cannot_listen(world: World) -> None:
    script = world.folder / "cannot.py"
    script.write_text(
        "import goplugin, grpc._server\n"
        "def no(self, address): raise RuntimeError('grpc says no')\n"
        "grpc._server._Server.add_insecure_port = no\nimport plugin\nplugin.main()\n"
    )
    host = world.host(script)
    with pytest.raises(CallError, match="goplugin: This plugin cannot listen: .*grpc says no"):
        host.ask("start")
    assert host.logged("This plugin cannot listen", **{"@level": "error"})
    assert world.gone()


@pytest.mark.grpcio_only("pygrpc-native needs a temporary folder")
def test_no_temporary_folder(world: World) -> None:
    """A plain plugin needs none. Under AutoMTLS or multiplexing the plugin says what to set."""
    script = world.folder / "without.py"
    script.write_text(WITHOUT_FOLDERS)
    host = world.host(script)
    if world.auto_mtls or world.multiplexed:
        with pytest.raises(CallError, match="goplugin: This plugin cannot listen: no temporary folder for sockets"):
            host.ask("start")
        assert host.logged("set TMPDIR to a writable folder", **{"@level": "error"})
    else:
        host.ask("start")
        put(host, "k", b"v")


def test_loopback_is_down(world: World) -> None:
    """In a new network namespace, the plugin listens on a Unix socket, as a Go plugin does."""
    host = world.host(cmd=["unshare", "--net", sys.executable, PLUGIN])
    assert host.ask("start")["network"] == "unix"
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    assert host.ask("kill")["seconds"] < 4
    assert not list(world.temporary.iterdir())


def test_the_broker_where_loopback_is_down(world: World) -> None:
    host = probe.start(world, cmd=["unshare", "--net", sys.executable, str(probe.PLUGIN)])
    probe.do(host, Probe.accept, 1)
    host.ask("dial", broker=1)
    assert probe.do(host, Probe.echo, "x", broker=1) == "x"
    host.ask("accept", broker=2)
    assert probe.do(host, Probe.dial, [2, "x", 1]) == "the same"


@pytest.mark.windows
@pytest.mark.plain_only("the test plays the host")
def test_a_host_that_closes_stdout_only(world: World) -> None:
    """The plugin takes the host for gone when nobody reads stderr, or when its parent process has ended."""
    process = world.run(sys.executable, PLUGIN, env={**world.env, **HOSTS_VARIABLES})
    line(process)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    time.sleep(0.5)
    assert process.poll() is None
    process.stderr.close()
    assert eventually(lambda: process.poll() is not None, 5)
    process.stdout, process.stderr = None, None


def test_a_host_that_gave_up_before_goplugin_was_imported(world: World) -> None:
    """The host kills the shell in between and then waits for the pipes, which the plugin holds."""
    script = world.folder / "slow.py"
    script.write_text("import time\ntime.sleep(2)\nimport plugin\nplugin.main()\n")
    host = world.host(script, shell=True, start_timeout=1)
    with pytest.raises(CallError, match="timeout while waiting for plugin to start"):
        host.ask("start")
    assert world.gone()
    assert host.logged("ended before `import goplugin`", **{"@level": "error"})


@pytest.mark.plain_only("the host makes no difference")
def test_safe_path(world: World) -> None:
    """With python -P, Python does not import from the script's folder; docs/guide.md explains it."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no -P")
    del world.env["PYTHONPATH"]
    alone = subprocess.run([sys.executable, "-P", PLUGIN], env=world.env, capture_output=True, check=False, text=True)
    assert "No module named 'goplugin'" in alone.stderr
    host = world.host(cmd=["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", PLUGIN])
    host.ask("start")
    put(host, "k", b"v")
