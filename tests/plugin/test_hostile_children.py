"""Misbehaving child processes: what they write is only data, and what they inherit still belongs to the plugin."""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import probe
import psutil
import pytest
from actions import Call, children, own_process
from authors import RIGHT
from harness import CallError, Host, World, eventually, is_alive
from probe_plugin import Probe

from goplugin import standard_streams
from goplugin.address import Address

NO_TOKEN, _, RIGHT_TOKEN = children.TOKENS


def write_frames(host: Host, token: str, *frames: str, times: int = 1, size: int = 0) -> None:
    """Have a child of the plugin write the frames `times` times, each with `size` more bytes."""
    probe.act(host, children.run_one_that_writes_frames, token, list(frames), times, size)


def named(world: World, name: str) -> list[psutil.Process]:
    found = []
    for process in world.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == name:
                found.append(process)
    return found


@pytest.fixture
def sleeps(world: World) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Lists the test's sleep processes; the fixture ends them after the test."""
    yield lambda: named(world, "sleep")
    for process in named(world, "sleep"):
        process.kill()


def says(host: Host, text: str) -> bool:
    """Whether the text, which is already written, arrives in the host's log."""
    return bool(eventually(lambda: host.logged_now(text), 5))


@pytest.mark.parametrize("token", children.TOKENS)
def test_a_child_that_writes_pids_ends_nobody(
    world: World, sleeps: Callable[[], list[psutil.Process]], token: str
) -> None:
    """A pid in a text kills no process: not the host, the plugin, the companion, process 1 or the child itself."""
    host = probe.start(world)
    child = psutil.Process(probe.act(host, children.start_one_that_becomes_sleep))
    for pid in (host.process.pid, world.plugin().pid, world.companion().pid, 1, child.pid):
        write_frames(host, token, f"worker {pid}")
        write_frames(host, token, f"worker .{pid}")
    assert host.ask("kill")["seconds"] < 4
    assert world.gone()
    assert host.process.poll() is None
    assert is_alive(child)
    assert says(host, f"worker {child.pid}") or token == RIGHT_TOKEN


RECORDS = ['{"@message":5}', '{"@message":"m","@level":{}}', '{"@message":"m","@timestamp":[1]}', '{"@message":null']


@pytest.mark.parametrize("frames", ["one frame", "two frames"])
@pytest.mark.parametrize("token", [NO_TOKEN, RIGHT_TOKEN])
@pytest.mark.windows
def test_a_record_of_a_child_cannot_end_the_host(world: World, token: str, frames: str) -> None:
    """The companion checks a whole record as it checks a line."""
    host, right = probe.start(world), token == RIGHT_TOKEN
    for number, record in enumerate(RECORDS):
        half = 6 if frames == "two frames" else 0
        pieces = [f"{number}.1 +{record[:half]}"] * bool(half) + [f"{number}.1 .{record[half:]}"]
        write_frames(host, token, *pieces)
        assert says(host, f"> {record}" if right else record[half:])
    whole = '{"@level":"warn","@message":"a record of a child","@timestamp":"2026-01-02T03:04:05.000006Z"}'
    write_frames(host, RIGHT_TOKEN, f"9.1 .{whole}")
    assert host.logged("a record of a child", **{"@level": "warn"})
    assert probe.do(host, Probe.echo, "the host is there") == "the host is there"


@pytest.mark.parametrize("kind", children.IN_A_FORK)
def test_a_fork_in_a_fork_keeps_its_files(world: World, kind: str) -> None:
    """In the inner fork, other files have the descriptor numbers that the host's pipes had in the plugin."""
    host = probe.start(world)
    assert probe.act(host, children.fork_in_a_fork, kind, seconds=20) == 0
    assert probe.do(host, Probe.echo, 1) == 1


UNFINISHED = {"one record": range(1), "thirty records": range(30)}  # one of 10 MB, or 30 of 1 MB


@pytest.mark.parametrize("kind", UNFINISHED)
def test_records_without_an_end_cost_little(world: World, kind: str) -> None:
    """The companion spends little time and memory on them, and the host's calls are not delayed."""
    host = probe.start(world, auto_mtls=True)
    companion = world.companion()
    time_before, memory_before = sum(companion.cpu_times()[:2]), companion.memory_info().rss
    longest = 0.0
    with ThreadPoolExecutor(1) as thread:
        frames = [f"{number}.1 +" for number in UNFINISHED[kind]]
        times = 2500 if kind == "one record" else 250
        writing = thread.submit(write_frames, host, RIGHT_TOKEN, *frames, times=times, size=4000)
        while not writing.done():
            begin = time.monotonic()
            assert probe.do(host, Probe.echo, 1) == 1
            longest = max(longest, time.monotonic() - begin)
        writing.result()
    probe.do(host, Probe.log, [20, "the end", {}])
    assert says(host, "the end")
    assert companion.memory_info().rss - memory_before < 20 << 20
    assert sum(companion.cpu_times()[:2]) - time_before < 3
    assert longest < 1


def refuses(name: str, port: int) -> bool:
    """Whether nobody listens on the port."""
    try:
        socket.create_connection((name, port), timeout=4).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_fork_does_not_keep_the_hosts_connection(world: World) -> None:
    """After the plugin is killed, the host's calls fail at once and nobody listens. The author's sockets stay open."""
    host = probe.start(world)
    pid, text = probe.act(host, children.fork_one_with_a_socket)
    assert text == "the child has it"
    forked = psutil.Process(pid)
    answer = host.ask("start")
    call = host.begin("call", method="/probe.Probe/sleep", message=b"60")
    plugin, begin = world.plugin(), time.monotonic()
    plugin.kill()
    try:
        with pytest.raises(CallError, match="Unavailable"):
            call()
        assert time.monotonic() - begin < 4
        if answer["network"] == "tcp":
            name, _, port = answer["address"].rpartition(":")
            assert eventually(lambda: refuses(name, int(port)), 4)
        assert is_alive(forked)
    finally:
        forked.kill()


def test_sockets_of_other_kinds_do_not_stand_in_the_way() -> None:
    """The name of an abstract Unix socket is bytes; here it has the lowest descriptor."""
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as listener:
        abstract.bind(f"\0goplugin-{uuid.uuid4()}")
        port = listener.getsockname()[1]
        standard_streams.close_sockets({Address("tcp", f"127.0.0.1:{port}")})
        assert refuses("127.0.0.1", port)
        assert abstract.getsockname()


@pytest.mark.parametrize("ways", [["fork"], ["spawn", "forkserver"]], ids=", ".join)
def test_what_workers_start_lives_on(world: World, sleeps: Callable[[], list[psutil.Process]], ways: list[str]) -> None:
    """The workers end with the plugin. The programs that they have started do not, however they started them."""
    host = probe.start(world)
    workers = [psutil.Process(pid) for pid in probe.act(host, children.start_workers_that_start_programs, ways)]
    assert eventually(lambda: len(sleeps()) == 2 * len(ways), 10)
    assert says(host, "the worker has started them")
    assert host.ask("kill")["seconds"] < 4
    assert world.gone()
    assert eventually(lambda: not any(map(is_alive, workers)), 2)
    assert len(sleeps()) == 2 * len(ways)


IN_A_FORK_OF_MAIN = {
    "text": "sys.exit('there is no work')",
    "exception": "raise ValueError('there is no work')",
    "handshake line": "print(line, flush=True)",
}


@pytest.mark.parametrize("kind", IN_A_FORK_OF_MAIN)
def test_a_fork_of_main_tells_the_host_nothing(world: World, kind: str) -> None:
    """What the fork says before the handshake line goes to the log, not into the files that it has opened."""
    script = world.folder / "forks.py"
    fork = f"""import os
line = plugin.listen(server)
if os.fork() == 0:
    files = [open(f"file{{number}}", "w") for number in range(8)]
    {IN_A_FORK_OF_MAIN[kind]}
    sys.exit()
os.wait()
print(line, flush=True)
"""
    script.write_text(RIGHT.replace("print(plugin.listen(server), flush=True)\n", fork))
    host = world.started(script)
    assert {path.name: path.read_text() for path in world.folder.glob("file*")} == {f"file{n}": "" for n in range(8)}
    assert says(host, "|grpc" if kind == "handshake line" else "there is no work")
    assert not host.logged_now("main() ended")


ENDS_IN_A_FORK_OF_MAIN = {
    "fork of main, text": "sys.exit('of a child')",
    "fork of main, exception": "raise ValueError('of a child')",
}


@pytest.mark.parametrize("kind", ["subprocess", *ENDS_IN_A_FORK_OF_MAIN])
def test_the_end_of_a_child_is_not_the_plugins(world: World, kind: str) -> None:
    """The log shows why the child ended, but not as the end of the plugin."""
    if kind in ENDS_IN_A_FORK_OF_MAIN:
        script = world.folder / "forks.py"
        fork = f"import os\nif os.fork() == 0: {ENDS_IN_A_FORK_OF_MAIN[kind]}\nos.wait()\nplugin.wait()\n"
        script.write_text(RIGHT.replace("plugin.wait()\n", fork))
        host = world.started(script)
    else:
        host = probe.start(world)
        probe.act(host, children.run_one_that_imports_goplugin_and_fails)
    assert says(host, "of a child")
    assert host.ask("kill")["seconds"] < 1.9
    assert not host.logged_now("the plugin ends")


@pytest.mark.parametrize("action", [own_process.print_at_exit, own_process.write_at_exit])
def test_what_exit_handlers_write_is_no_reason(world: World, action: Callable[[Call], None]) -> None:
    """What they write to stderr becomes a line of the log, as does what they print to stdout."""
    host = probe.start(world)
    probe.act(host, action)
    assert host.ask("kill")["seconds"] < 1.9
    assert host.logged("and thanks", **{"@level": "debug"})
    record = host.logged("good bye")
    assert record
    assert (record["@level"], record["@message"]) == ("debug", "good bye")


def test_what_exit_handlers_write_is_not_part_of_the_reason(world: World) -> None:
    script = world.folder / "fails.py"
    script.write_text(
        "import goplugin, atexit, sys\n"
        "atexit.register(print, 'good bye', file=sys.stderr)\nsys.exit('no credentials')\n"
    )
    host = world.host(script)
    with pytest.raises(CallError, match="no credentials"):
        host.ask("start")
    record = host.logged("the plugin ends", **{"@level": "error"})
    assert record
    assert record["@message"] == "the plugin ends: no credentials"
    assert host.logged("good bye", **{"@level": "debug"})


def test_threads_without_python_code_print_to_the_host(world: World) -> None:
    """C libraries have such threads, which call Python functions. The host gets their output as any other."""
    host = probe.start(world)
    probe.act(host, own_process.write_in_a_thread_without_python_code)
    assert eventually(lambda: host.ask("stdio")["stderr"] == b"some words\n", 5)
    assert host.ask("kill")["seconds"] < 1.9
    assert not host.logged_now("some words")


def test_threads_without_python_code_print_before_the_handshake(world: World) -> None:
    script = world.folder / "early.py"
    script.write_text(
        "import goplugin\nimport _thread, sys, time\n_thread.start_new_thread(sys.stderr.write, ('some words\\n',))\n"
        "time.sleep(0.2)\nimport plugin\nplugin.main()\n"
    )
    host = world.started(script)
    assert says(host, "some words")
    assert host.ask("kill")["seconds"] < 1.9
    assert not host.logged_now("the plugin ends")
