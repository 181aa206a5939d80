"""The companion, the process beside the plugin: what it does for the plugin, and when it ends."""

import functools
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import probe
import psutil
import pytest
from actions import Call, children, handlers, own_process
from authors import RIGHT
from by_hand import HOSTS_VARIABLES, line
from certificates import certificate_in, client_context, make_certificate, served
from harness import ROOT, CallError, Host, World, eventually
from kv import SUFFIX, get, put
from probe_plugin import Probe

from goplugin.companion.loop import Loop


def test_the_plugin_has_no_child(world: World) -> None:
    """The plugin's own os.wait(), and a list of its children, never show the companion."""
    host = probe.start(world)
    assert probe.act(host, children.try_to_wait_for_any) == ["none", "none"]
    assert world.plugin().children() == []
    assert world.companion().ppid() != world.plugin().pid


def test_the_plugin_leaves_when_the_companion_has_died(world: World) -> None:
    """It does not go on without a companion; the host can start it again."""
    host = probe.start(world)
    world.companion().kill()
    assert world.gone()
    assert host.logged("the companion process died", **{"@level": "error"})
    assert not list(world.temporary.iterdir())


STARTS_THREADS = """\
import hashlib, threading, sys
def compute():
    while True: hashlib.sha256(b"x" * 1000000); sys.stdout.flush()
for _ in range(3): threading.Thread(target=compute, daemon=True).start()
"""


def test_threads_that_are_there_before(world: World) -> None:
    """Debuggers and tracers start such threads."""
    script = world.folder / "threads.py"
    script.write_text(STARTS_THREADS + "import plugin\nplugin.main()\n")
    world.env["PYTHONWARNINGS"] = "error"
    host = world.started(script)
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    assert not host.logged_now("Warning")
    assert host.ask("kill")["seconds"] < 1.9


WITHOUT_LINUX = """
import builtins, os, select, signal
del os.pidfd_open, signal.pidfd_send_signal
select.PIPE_BUF = 512
ordinary_open = open
def no_proc(path, *arguments, **options):
    if str(path).startswith("/proc"): raise FileNotFoundError(2, "no /proc", path)
    return ordinary_open(path, *arguments, **options)
builtins.open = no_proc
import plugin
plugin.main()
"""


# As on macOS. selectors is imported first, so that asyncio does not use this kqueue. It closes when it is collected.
WITH_KQUEUE = """
import os, select, selectors
pidfd_open = os.pidfd_open
class Kqueue:
    def control(self, changes, most):
        (pid, *what), = changes
        assert what == [-5, 1 << 31]
        self.fd = pidfd_open(pid)
    def fileno(self): return self.fd
    def __del__(self): os.close(self.fd)
select.kqueue, select.KQ_FILTER_PROC, select.KQ_NOTE_EXIT = Kqueue, -5, 1 << 31
select.kevent = lambda ident, filter, fflags: (ident, filter, fflags)
"""


# A killed shell stays defunct while the host waits for the plugin's pipes: only /proc or kqueue shows that it ended.
BY_VICTIM = {
    "host": WITHOUT_LINUX,
    "shell": WITHOUT_LINUX.replace('"/proc"', '"/proc/self"'),
    "shell, with kqueue": WITH_KQUEUE + WITHOUT_LINUX,
}


@pytest.mark.parametrize("victim", BY_VICTIM)
def test_without_what_only_linux_has(world: World, victim: str) -> None:
    """As on macOS and in sandboxes, where the companion checks twice a second whether the parent is there."""
    script = world.folder / "without.py"
    script.write_text(BY_VICTIM[victim])
    host = world.started(script, shell=True)
    put(host, "k", b"v")
    if victim == "host":
        host.process.kill()
    else:
        next(process for process in world.processes() if process.name() in ("sh", "dash")).kill()
    assert world.gone()


def test_a_parent_that_ends_before_kqueue_watches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is defunct, and there is no /proc to show it."""
    from goplugin.companion import posix  # not on Windows

    queue = Mock(**{"control.side_effect": ProcessLookupError})
    for name in ("kqueue", "kevent", "KQ_FILTER_PROC", "KQ_NOTE_EXIT"):
        monkeypatch.setattr(select, name, Mock(return_value=queue), raising=False)
    monkeypatch.delattr(os, "pidfd_open")
    reasons: list[str] = []
    with open(os.devnull, "wb") as stderr:
        posix.watch_host(Loop(), os.getpid(), posix.writes(stderr.fileno()), reasons.append)
    assert reasons == ["the process that started this plugin is gone"]


@pytest.mark.parametrize("where", ["handler", "after the host"])
def test_c_code_that_holds_the_gil(world: World, where: str) -> None:
    """The plugin cannot leave by itself, so the companion ends it."""
    host = probe.start(world)
    probe.begin(host, own_process.hold_the_gil)
    plugin = world.plugin()
    assert eventually(lambda: plugin.cpu_times().user > 0.6)
    host.process.kill()
    assert world.gone()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGTERM"])
def test_signals_to_the_process_group(world: World, name: str) -> None:
    """As a terminal sends them when it closes. No process and no file stays; the companion ends last."""
    number = signal.Signals[name]
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, and so does the plugin")
    host = probe.start(world)
    probe.act(host, own_process.write_no_core_file)
    group = os.getpgid(world.plugin().pid)
    for process in (*world.plugins(), *world.companions()):
        assert os.getpgid(process.pid) == group
        process.send_signal(number)
    assert world.gone()


def test_nohup_stays(world: World) -> None:
    host = world.started(cmd=["sh", "-c", f"trap '' HUP; exec {sys.executable} {ROOT / 'plugin.py'}"])
    world.plugin().send_signal(signal.SIGHUP)
    time.sleep(0.2)
    put(host, "k", b"v")


@pytest.mark.plain_only("the test plays the host, with AutoMTLS")
def test_tls_goes_on_when_nobody_reads_stderr(world: World, tmp_path: Path) -> None:
    script = world.folder / "talks.py"
    script.write_text(
        "import goplugin, threading, logging, plugin\n"
        "def talk():\n    while True: logging.error('x' * 1000)\n"
        "threading.Timer(0.5, talk).start()\nplugin.main()\n"
    )
    path = make_certificate(tmp_path, "host")
    env = {**world.env, **HOSTS_VARIABLES, "PLUGIN_CLIENT_CERT": certificate_in(path)}
    process = world.run(sys.executable, script, env=env)
    port = int(line(process).split("|")[3].rpartition(":")[2])
    time.sleep(1.5)  # until all pipes are full
    for _ in range(5):
        assert served(port, client_context(path))
        assert not served(port, client_context(None))


def has_exited(host: Host) -> bool:
    return bool(host.ask("exited")["exited"])


def test_the_last_words_arrive(world: World) -> None:
    """The host gets what the plugin writes just before it ends, however it ends."""
    for number, end in enumerate(own_process.ENDS):
        host = probe.start(world)
        words = f"last words {number}"
        with pytest.raises(CallError):
            probe.act(host, own_process.end_with_last_words, words, end)
        assert eventually(functools.partial(has_exited, host), 5)
        assert host.logged(words, **{"@level": "error"})
        assert host.logged(f"{words} unfinished", **{"@level": "debug"})
        host.close()


@pytest.mark.windows
def test_what_children_write_cannot_end_the_host(world: World) -> None:
    host = probe.start(world)
    probe.act(host, children.run_one_that_writes_json)
    assert host.logged('> {"@message": 1}')
    assert host.logged('> {"@level": 7, "@message": "m"}')
    assert host.logged("of a child", **{"@level": "warn"})  # as from a child that uses hclog itself
    assert probe.do(host, Probe.echo, 1) == 1


def test_records_arrive_whole_whatever_children_do(world: World) -> None:
    """Three children write lines of 4,096 bytes; one makes the pipe non-blocking. The plugin's records are longer."""
    host = probe.start(world)
    assert probe.act(host, children.log_while_three_make_noise, seconds=60) == [0, 0, 0]
    probe.do(host, Probe.log, [20, "the end", {}])
    assert host.logged("the end")
    messages = [record["@message"] for record in host.log()]
    for name in "de":
        assert messages.count("record " + name * 20000) == 100
    for name in "abc":
        assert messages.count(name * 4095) == 100


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (handlers.exit_with_a_text, "SystemExit: no credentials"),
        (handlers.raise_keyboard_interrupt, "KeyboardInterrupt"),
        (handlers.raise_cancelled_error, "CancelledError: gone"),
    ],
)
def test_handlers_that_end_by_more_than_an_exception(world: World, action: Callable[[Call], None], text: str) -> None:
    """The call fails at once, with a status and the text. The plugin logs the traceback and goes on."""
    host = probe.start(world)
    with pytest.raises(CallError, match=f"Unknown: {text}"):
        probe.act(host, action, seconds=20)
    record = host.logged("/probe.Probe/act: ", **{"@level": "error"})
    assert record
    assert "Traceback" in record["stacktrace"]
    probe.open_stream(host, 1, "/probe.Streams/act", probe.action_message(action))
    assert host.ask("recv", stream=1)["message"] == b"begun"
    with pytest.raises(CallError, match=f"Unknown: {text}"):
        host.ask("recv", stream=1)
    assert host.logged("/probe.Streams/act: ", **{"@level": "error"})
    assert probe.do(host, Probe.echo, 1) == 1
    assert host.ask("kill")["seconds"] < 1.9


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("return", 0), ("raise ValueError", 1), ("os._exit(5)", 5)],
)
def test_a_child_that_a_handler_forks_ends(world: World, end: str, code: int) -> None:
    """The child neither becomes a thread of the pool nor answers the call."""
    host = probe.start(world)
    assert probe.act(host, children.fork_one_that_ends, end, seconds=20) == code
    assert probe.do(host, Probe.echo, 1) == 1


def test_a_child_that_main_forks_leaves_the_plugin_alone(world: World) -> None:
    """The child runs all exit handlers in sys.exit(), but keeps its parent's sockets and folders."""
    script = world.folder / "forks.py"
    text = RIGHT.replace("plugin.wait()", "import os\nif os.fork() == 0: sys.exit(3)\nos.wait()\nplugin.wait()")
    script.write_text(text)
    host = world.started(script, runner=True)
    put(host, "k", b"v")
    host.close()
    host = world.started(script)
    put(host, "k", b"v")
    assert not host.logged_now("main() ended")


@pytest.mark.windows
def test_children_do_not_keep_the_host_waiting(world: World) -> None:
    """A handler waits for one child and leaves another behind."""
    host = probe.start(world)

    def sleeping() -> list[psutil.Process]:
        return [process for process in world.processes() if process.cmdline()[1:] == children.SLEEP[1:]]

    probe.act(host, children.leave_asleep)
    probe.begin(host, children.wait_for_asleep)
    assert eventually(lambda: len(sleeping()) == 2)
    assert host.ask("kill")["seconds"] < 4
    assert host.ask("exited")["exited"]
    for process in sleeping():
        process.kill()


@pytest.mark.grpcio_only("pygrpc-native needs the folder")
def test_the_folder_may_be_removed(world: World) -> None:
    """A program that cleans /tmp removes it; the broker gets a new one."""
    world.auto_mtls = True
    host = probe.start(world, auto_mtls=True)
    (folder,) = world.temporary.iterdir()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    host.ask("accept", broker=1)
    assert probe.do(host, Probe.dial, [1, "x", 1]) == "the same"
    probe.do(host, Probe.accept, 2)
    host.ask("dial", broker=2)
    assert probe.do(host, Probe.echo, "x", broker=2) == "x"


def test_other_temporary_folders(world: World) -> None:
    """With a wrong TMPDIR the plugin never uses the working directory, and leaves nothing behind."""
    good, read_only = world.temporary / "good", world.temporary / "file"
    good.mkdir()
    read_only.write_text("not a folder")
    for tmpdir in ("", "missing", str(world.folder / "missing"), str(read_only), "."):
        world.env |= {"TMPDIR": tmpdir, "TEMP": str(good)}
        host = world.host(auto_mtls=True)
        host.ask("start")
        put(host, "k", b"v")
        assert [path.name for path in world.folder.iterdir()] == ["kv_k"]
        assert len(list(good.iterdir())) == 1
        host.close()
        assert not list(good.iterdir())
    read_only.unlink()
    good.rmdir()
