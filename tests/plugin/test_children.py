"""Workers of multiprocessing end with the plugin, however it ends, and log as it does."""

import time

import probe
import psutil
import pytest
from actions import children
from harness import PLUGINS, World, eventually, is_alive
from kv import get, put

WAYS = ["fork", "spawn", "forkserver"]
MARKED = [pytest.param(way, marks=() if way == "spawn" else pytest.mark.unix_only("Windows: no fork")) for way in WAYS]


@pytest.mark.parametrize("end", ["Kill()", "plugin killed", "host killed"])
@pytest.mark.parametrize("kind", ["Process", "daemon", "Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("way", MARKED)
@pytest.mark.windows
def test_workers_end_with_the_plugin(world: World, way: str, kind: str, end: str) -> None:
    host = world.started(PLUGINS / "pool_plugin.py")
    put(host, kind, way.encode())
    wanted = 2 if "Pool" in kind else 1
    assert eventually(lambda: sum(record["@message"] == "busy" for record in host.log()) == wanted)
    if end == "Kill()":
        assert host.ask("kill")["seconds"] < 4
    elif end == "plugin killed":
        world.plugin().kill()
        assert eventually(lambda: host.ask("exited")["exited"], 2)
    else:
        host.process.kill()
    assert world.gone()


@pytest.mark.parametrize("way", MARKED)
@pytest.mark.windows
def test_workers_log_as_the_plugin_does(world: World, way: str) -> None:
    """Their records and exceptions arrive whole, with level, module and pairs. They do not see the host's variables."""
    host = world.started(PLUGINS / "pool_plugin.py")
    pid, left = get(host, way).decode().split(" ", 1)
    assert left == "[]"
    record = host.logged("x" * 20_000, **{"@level": "warn", "@module": "of.a.worker"})
    assert record
    assert record["pid"] == int(pid)
    assert eventually(lambda: host.logged_now("ValueError: a worker fails"))
    assert host.ask("kill")["seconds"] < 4


@pytest.mark.parametrize("way", WAYS)
def test_workers_end_though_a_fork_lives(world: World, way: str) -> None:
    """The fork has inherited the descriptors by which the workers notice their parent's end."""
    host = probe.start(world)
    forked, *workers = map(psutil.Process, probe.act(host, children.start_sleepers, way))
    time.sleep(0.5)  # until the workers have begun
    world.plugin().kill()
    assert eventually(lambda: not any(is_alive(worker) for worker in workers), 5)
    assert forked.is_running()
    forked.kill()


@pytest.mark.parametrize("way", ["fork", "forkserver"])
def test_a_worker_whose_c_code_holds_the_gil(world: World, way: str) -> None:
    """The system ends the worker; no Python code has to run for that."""
    host = probe.start(world)
    worker = psutil.Process(probe.act(host, children.start_one_that_holds_the_gil, way))
    assert eventually(lambda: worker.cpu_times().user > 0.6)
    world.plugin().kill()
    assert world.gone()
