"""When the plugin leaves, and that it leaves nothing behind."""

import contextlib
import signal
import sys
import time
from pathlib import Path

import probe
import psutil
import pytest
from actions import children
from harness import PLUGINS, CallError, World, eventually
from kv import get, put
from probe_plugin import Probe

import kv_pb2

SHELL = [pytest.param(False, id=""), pytest.param(True, id="sh", marks=pytest.mark.unix_only("Windows has no sh"))]


@pytest.mark.parametrize("shell", SHELL)
@pytest.mark.windows
def test_kill_takes_no_two_seconds(world: World, shell: bool) -> None:
    host = world.started(shell=shell)
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9
    assert not world.plugins()
    exited = next(record for record in host.log() if "plugin process exited" in record["@message"])
    assert "error" not in exited  # exit code 0


@pytest.mark.parametrize("shell", SHELL)
@pytest.mark.windows
def test_gone_when_the_host_is_killed(world: World, shell: bool) -> None:
    host = world.started(shell=shell)
    host.process.kill()
    assert world.gone()


@pytest.mark.windows
def test_gone_when_the_host_is_killed_during_a_call(world: World) -> None:
    host = probe.start(world, shell=sys.platform != "win32")
    host.begin("call", method="/probe.Probe/sleep", message=b"3600")
    time.sleep(0.3)
    host.process.kill()
    assert world.gone()


def test_gone_when_the_shell_between_is_killed(world: World) -> None:
    """After 2 s, Kill() kills the process that the host started (here the shell) and waits for the pipes to close."""
    host = world.started(shell=True)
    shell = next(process for process in world.processes() if process.name() in ("sh", "dash"))
    shell.kill()
    assert world.gone()
    assert host.ask("kill")["seconds"] < 1.9


def test_sigint_is_the_hosts(world: World) -> None:
    """The plugin leaves Ctrl-C, which reaches the whole process group, to the host from the first moment."""
    host = world.host()
    started = host.begin("start")
    (plugin,) = eventually(lambda: world.plugins()[:1])
    # Wait until `import goplugin` has taken stdout: before that, Python itself is still starting.
    stdout, stderr = (Path(f"/proc/{plugin.pid}/fd/{fd}") for fd in (1, 2))
    assert eventually(lambda: stdout.readlink() == stderr.readlink())
    for _ in range(50):
        plugin.send_signal(signal.SIGINT)
        time.sleep(0.002)
    started()
    for plugin in world.plugins():
        for _ in range(3):
            plugin.send_signal(signal.SIGINT)
    put(host, "k", b"v")
    assert get(host, "k")
    assert "Traceback" not in "".join(record["@message"] for record in host.log())


@pytest.mark.plain_only("the test needs no host")
def test_sigint_is_ignored_before_anything_else_is_imported(world: World) -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['goplugin.standard_streams'])); import signal\n"
    code += "try: import goplugin\nexcept ImportError: print(signal.getsignal(signal.SIGINT)(2, None))"
    process = world.run(sys.executable, "-c", code, env={**world.env, "PLUGIN_MIN_PORT": "1"})
    assert process.communicate(timeout=10) == (b"None\n", b"")


def test_children_of_the_plugin_hear_sigint(world: World) -> None:
    assert probe.do(probe.start(world), Probe.signal_of_child) == -signal.SIGINT


@pytest.mark.windows
def test_calls_in_flight_may_finish(world: World) -> None:
    """The plugin answers Shutdown at once; the handler still has time to finish."""
    host = probe.start(world)
    done = world.folder / "done"
    host.begin("call", method="/probe.Probe/sleep_then_write", message=probe.message([0.8, str(done)]))
    time.sleep(0.2)
    assert 0.4 < host.ask("kill")["seconds"] < 1.9
    assert done.read_text() == "done"


def test_sigterm_lets_calls_finish(world: World) -> None:
    host = probe.start(world)
    call = host.begin("call", method="/probe.Probe/sleep", message=b"0.8")
    time.sleep(0.2)
    for plugin in world.plugins():
        plugin.send_signal(signal.SIGTERM)
    assert call()["message"] == b"null"
    assert world.gone()
    assert not [record for record in host.log() if "exited" in record["@message"] and "error" in record]


def test_sigterm_that_another_thread_gets(world: World) -> None:
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/sigterm", message=b"null")
    assert world.gone()
    assert host.ask("kill")["seconds"] < 1.9


@pytest.mark.parametrize("stuck", ["sleep", "hold_thread"])
@pytest.mark.windows
def test_what_is_stuck_does_not_keep_it(world: World, stuck: str) -> None:
    """A stuck handler, or a thread that Python would wait for: the plugin still leaves within Kill()'s 2 s."""
    host = probe.start(world)
    call = host.begin("call", method=f"/probe.Probe/{stuck}", message=b"3600" if stuck == "sleep" else b"null")
    time.sleep(0.3)
    assert host.ask("kill")["seconds"] < 4
    assert not host.logged_now("failed to exit gracefully")
    if stuck == "sleep":
        with pytest.raises(CallError):
            call()


def test_a_host_that_leaves_is_no_sigpipe(world: World) -> None:
    """A frozen program may not ignore SIGPIPE, which then killed the companion before it removed the sockets."""
    script = world.folder / "frozen.py"
    script.write_text(
        "import signal\n\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\n\nimport goplugin\n\nimport plugin\n\n"
        "plugin.main()\n"
    )
    host = world.started(script)
    put(host, "k", b"v")
    assert host.ask("kill")["seconds"] < 1.9
    exited = next(record for record in host.log() if "plugin process exited" in record["@message"])
    assert "error" not in exited
    for _ in range(5):
        host = world.started(script)
        messages = [kv_pb2.PutRequest(key="k", value=b"v" * 1_000_000).SerializeToString()] * 4
        for message in messages:
            host.begin("call", method="/proto.KV/Put", message=message)
        host.process.kill()
        assert world.gone()
        assert not list(world.temporary.iterdir())


@pytest.mark.plain_only("go-plugin cannot reattach with AutoMTLS")
def test_stays_when_told_to(world: World) -> None:
    """For hosts that end and reattach: the plugin survives the host and the shell, but still leaves on Shutdown."""
    world.env["PROBE_STAYS"] = "1"
    host = probe.start(world, shell=True)
    answer = host.ask("call", method="/probe.Probe/echo", message=b"1")
    assert answer["message"] == b"1"
    address = host.ask("start")["address"]
    for process in world.processes():
        if process.name() in ("sh", "dash"):
            process.kill()
    host.process.kill()
    assert not world.gone(2.5)
    plugin = world.plugin()
    reattach = {
        "Protocol": "grpc",
        "ProtocolVersion": 1,
        "Pid": plugin.pid,
        "Addr": {"Network": "tcp", "String": address},
    }
    second = probe.host(world, reattach=reattach)
    second.ask("start")
    assert probe.do(second, Probe.echo, "found again") == "found again"
    probe.do(second, Probe.write_fd, [1, "nobody reads this\n", 1])  # and it does not fail
    probe.do(second, Probe.log, [20, "nor this", {}])
    second.ask("kill")
    assert world.gone()


def test_children_by_fork_are_not_the_plugin(world: World) -> None:
    """multiprocessing can end them by SIGTERM, and their output reaches the log."""
    host = probe.start(world)
    assert probe.do(host, Probe.pool) == [1, 2, 3]
    assert probe.do(host, Probe.fork_and_print, "printed by a child") == 0
    assert host.logged("printed by a child")
    assert probe.do(host, Probe.echo, "still here") == "still here"
    assert host.ask("kill")["seconds"] < 1.9


def test_a_signal_to_a_child_that_is_just_made_is_the_childs(world: World) -> None:
    """If a pool ends at once, its newest worker gets SIGTERM before Python has finished the fork."""
    (world.folder / "early.py").write_text(
        "import os, runpy, signal\n"
        "os.register_at_fork(after_in_child=lambda: 'EARLY' in os.environ and os.kill(os.getpid(), signal.SIGTERM))\n"
        f"runpy.run_path({str(probe.PLUGIN)!r}, run_name='__main__')\n"
    )
    world.env["PYTHONPATH"] += f":{PLUGINS}"
    host = probe.start(world, world.folder / "early.py")
    assert probe.act(host, children.fork_after_early) == signal.SIGTERM
    time.sleep(0.3)
    assert probe.do(host, Probe.echo, "still here") == "still here"


@pytest.mark.windows
def test_shutdown_is_heard_however_many_calls_there_are(world: World) -> None:
    """There are more calls than threads, and the host waits for the answer without a deadline."""
    host = probe.start(world)
    for stream in range(520):
        probe.open_stream(host, stream, "/probe.Streams/hold")
    for stream in range(500):
        host.ask("recv", stream=stream)
    assert host.ask("kill")["seconds"] < 4
    assert not host.logged_now("failed to exit gracefully")


@pytest.mark.windows
def test_a_plugin_that_fails_says_why_and_leaves_nothing(world: World) -> None:
    for variable, text in (("PROBE_FAILS", "it fails at import"), ("PROBE_DOES_NOT_WAIT", "main fails")):
        world.env[variable] = "1"
        host = probe.host(world, runner=True)
        with contextlib.suppress(CallError):
            host.ask("start")
            host.ask("ping")  # by now the host has opened its streams
        assert world.gone()
        assert any(text in str(record) for record in host.log())
        for folder in world.folder.iterdir():
            assert not list(folder.iterdir())
        host.close()
        del world.env[variable]


def test_children_do_not_hold_the_hosts_pipe(world: World) -> None:
    """A child that lives on has none of the plugin's descriptors; a fork without exec does not hold its stdout."""
    host = probe.start(world)
    assert set(probe.do(host, Probe.child, [])) <= {0, 1, 2, 3}
    forked = psutil.Process(probe.do(host, Probe.fork))
    assert forked.is_running()
    assert host.ask("kill")["seconds"] < 1.9
    for process in world.processes():
        if process.pid != host.process.pid:
            process.kill()


def test_idle_costs_no_wake_ups(world: World) -> None:
    world.started()
    plugin = world.plugin()
    time.sleep(0.5)

    def switches() -> int:
        total = 0
        for task in Path(f"/proc/{plugin.pid}/task").iterdir():
            for text in (task / "status").read_text().splitlines():
                if text.startswith("voluntary_ctxt_switches"):
                    total += int(text.split()[1])
        return total

    before = switches()
    time.sleep(2)
    assert switches() - before < 60


@pytest.mark.windows
def test_an_exception_in_a_handler(world: World) -> None:
    """The caller gets a status with the message, the host's log gets the traceback, and the next call works."""
    host = probe.start(world)
    with pytest.raises(CallError, match="Unknown.*it broke"):
        probe.do(host, Probe.fail, "it broke")
    record = host.logged("it broke", **{"@level": "error"})
    assert record
    assert "Traceback" in record["stacktrace"]
    assert "ValueError: it broke" in record["stacktrace"]
    probe.do(host, Probe.fail_in_thread, "it broke in a thread")
    record = host.logged("uncaught exception in thread of-the-plugin", **{"@level": "error"})
    assert record
    assert "it broke in a thread" in record["stacktrace"]
    assert probe.do(host, Probe.echo, 1) == 1
