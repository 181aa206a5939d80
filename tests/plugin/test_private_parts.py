"""goplugin uses some private parts of grpc. Without one of them it loses a single feature, and no more."""

import probe
from harness import PLUGINS, Host, World
from probe_plugin import Probe

import goplugin.aio

WITHOUT = """\
import goplugin, grpc, grpc._server, sys
sys.path.append({plugins!r})
{change}
import probe_plugin
probe_plugin.main()
"""


def start(world: World, change: str) -> Host:
    script = world.folder / "without.py"
    script.write_text(WITHOUT.format(plugins=str(PLUGINS), change=change))
    return probe.start(world, script)


def check(host: Host) -> None:
    assert probe.do(host, Probe.echo, 1) == 1
    host.ask("ping")
    host.ask("accept", broker=1)
    assert probe.do(host, Probe.dial, [1, "x", 1]) == "the same"
    assert host.ask("kill")["seconds"] < 1.9


def test_without_pools_of_methods_calls_share_the_threads(world: World) -> None:
    """Without grpc's experimental_thread_pool, Shutdown waits behind stuck handlers once they hold all threads."""
    host = start(world, "grpc._server._select_thread_pool_for_behavior = lambda behavior, default: default")
    check(host)


def test_without_the_state_of_an_aio_server() -> None:
    """goplugin then cannot see that a server was started before `listen`; test_misuse.py tests that it usually does."""
    assert not goplugin.aio._is_running(object())
