"""Child processes that do what they should not: what they write is data, and what they inherit is their parent's."""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import probe
import psutil
import pytest
from authors import RIGHT as RIGHT_PLUGIN
from harness import PLUGINS, CallError, Host, World, eventually

from goplugin import standard_streams
from goplugin.address import Address

PROBE = str(PLUGINS / "probe_plugin.py")

# By the token, which only children of the plugin know, the companion tells frames from text.
RIGHT = "token = ''.join(part + ' ' for part in os.environ['GOPLUGIN_STDERR'].split(':')[2:]).encode()\n"
TOKENS = {"no token": "token = b''\n", "wrong token": f"token = b'{'0123456789abcdef' * 2} '\n", "right token": RIGHT}
FRAMES = r"""
import os, sys, time
def write(frame): os.write(2, b"\x1egoplugin:" + token + frame + b"\n")
"""

# A child that has announced itself, or not, becomes a program that has never heard of the plugin.
SLEEP = "\nos.write(1, b'\\n'); os.execvp('sleep', ['sleep', '60'])"


def run_child(host: Host, code: str, **options: Any) -> None:
    """Have the plugin run Python code in a child, and wait for it."""
    run = f"import subprocess, sys\nresult = subprocess.run([sys.executable, '-c', {code!r}]).returncode"
    assert probe.do(host, "run", run, **options) == 0


def start_child(host: Host, code: str) -> psutil.Process:
    """Have the plugin start a child that runs Python code; it has run when it writes a line to stdout."""
    run = (
        f"import subprocess, sys\nprocess = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=-1)\n"
        "process.stdout.readline()\nresult = process.pid"
    )
    return psutil.Process(probe.do(host, "run", run))


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def named(world: World, name: str) -> list[psutil.Process]:
    found = []
    for process in world.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == name:
                found.append(process)
    return found


@pytest.fixture
def sleeps(world: World) -> Iterator[Callable[[], list[psutil.Process]]]:
    """The processes of the test that sleep; they are ended after it."""
    yield lambda: named(world, "sleep")
    for process in named(world, "sleep"):
        process.kill()


def says(host: Host, text: str) -> bool:
    """Whether the text arrives in the host's log; it is on its way already."""
    return bool(eventually(lambda: host.logged_now(text), 5))


@pytest.mark.parametrize("token", TOKENS)
def test_a_child_that_writes_pids_ends_nobody(
    world: World, sleeps: Callable[[], list[psutil.Process]], token: str
) -> None:
    """Nobody kills what a pid in a text names: the host, the plugin, process 1, a stranger, or the child itself."""
    host = probe.start(world)
    child = start_child(host, "import os" + SLEEP)
    for pid in (host.process.pid, world.plugin().pid, world.companion().pid, 1, child.pid):
        run_child(host, FRAMES + TOKENS[token] + f"write(b'worker {pid}')")
        run_child(host, FRAMES + TOKENS[token] + f"write(b'worker .{pid}')")
    assert host.ask("kill")["seconds"] < 4
    assert world.gone()
    assert host.process.poll() is None
    assert is_alive(child)
    assert says(host, f"worker {child.pid}") or TOKENS[token] == RIGHT


RECORDS = ['{"@message":5}', '{"@message":"m","@level":{}}', '{"@message":"m","@timestamp":[1]}', '{"@message":null']


@pytest.mark.parametrize("frames", ["one frame", "two frames"])
@pytest.mark.parametrize("token", ["no token", "right token"])
@pytest.mark.windows
def test_a_record_of_a_child_cannot_end_the_host(world: World, token: str, frames: str) -> None:
    """It is checked as a line is, when it is whole."""
    host, right = probe.start(world), TOKENS[token] == RIGHT
    for number, record in enumerate(RECORDS):
        half = 6 if frames == "two frames" else 0
        pieces = [f"{number}.1 +{record[:half]}"] * bool(half) + [f"{number}.1 .{record[half:]}"]
        run_child(host, FRAMES + TOKENS[token] + f"for piece in {pieces}: write(piece.encode())")
        assert says(host, f"> {record}" if right else record[half:])
    whole = '{"@level":"warn","@message":"a record of a child","@timestamp":"2026-01-02T03:04:05.000006Z"}'
    run_child(host, FRAMES + RIGHT + f"write(b'9.1 .' + {whole.encode()!r})")
    assert host.logged("a record of a child", **{"@level": "warn"})
    assert probe.do(host, "echo", "the host is there") == "the host is there"


FORKS = """
import multiprocessing, os, subprocess, sys
def in_a_child(work, seconds=8):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    return process.exitcode
def opens():
    return [open(os.devnull) for number in range(8)]
def see(files):
    for file in files: os.fstat(file.fileno())
"""
IN_A_FORK = {
    "Pool": """
def work():
    with multiprocessing.get_context("fork").Pool(2) as pool: sys.exit(pool.map(abs, [-1, -2, -3]) != [1, 2, 3])
""",
    "fork": """
def work():
    files = opens()
    sys.exit(in_a_child(lambda: see(files)))
""",
    "os.fork": """
def work():
    files = opens()
    pid = os.fork()
    if pid == 0:
        see(files)
        os._exit(0)
    os._exit(os.waitpid(pid, 0)[1] >> 8)
""",
    "preexec_fn and pass_fds": """
def work():
    files = opens()
    numbers = [file.fileno() for file in files]
    code = f"import os\\nfor number in {numbers}: os.fstat(number)"
    sys.exit(subprocess.run([sys.executable, "-c", code], pass_fds=numbers, preexec_fn=int).returncode)
""",
    "three generations": """
def work():
    files = opens()
    sys.exit(in_a_child(lambda: sys.exit(in_a_child(lambda: see(files)))))
""",
}


@pytest.mark.parametrize("kind", IN_A_FORK)
def test_a_fork_in_a_fork_keeps_its_files(world: World, kind: str) -> None:
    """The numbers that the host's pipes had in the plugin are those of other files there."""
    host = probe.start(world)
    assert probe.do(host, "run", FORKS + IN_A_FORK[kind] + "result = in_a_child(work)", seconds=20) == 0
    assert probe.do(host, "echo", 1) == 1


UNFINISHED = {
    "one record": "for number in range(2500): write(b'1.1 +' + b'x' * 4000)",
    "thirty records": "for number in range(7500): write(b'%d.1 +' % (number % 30) + b'x' * 4000)",
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_records_without_an_end_cost_little(world: World, kind: str) -> None:
    """Neither the companion's time, while the host calls, nor its memory."""
    host = probe.start(world, auto_mtls=True)
    companion = world.companion()
    time_before, memory_before = sum(companion.cpu_times()[:2]), companion.memory_info().rss
    longest = 0.0
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(run_child, host, FRAMES + RIGHT + UNFINISHED[kind])
        while not writing.done():
            begin = time.monotonic()
            assert probe.do(host, "echo", 1) == 1
            longest = max(longest, time.monotonic() - begin)
        writing.result()
    probe.do(host, "log", [20, "the end", {}])
    assert says(host, "the end")
    assert companion.memory_info().rss - memory_before < 20 << 20
    assert sum(companion.cpu_times()[:2]) - time_before < 3
    assert longest < 1


FORK_WITH_A_SOCKET = """
import os, socket, time
ours, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    os.close(1), os.close(2), ours.close()
    theirs.sendall(b"the child has it")
    time.sleep(12)
    os._exit(0)
theirs.close()
result = [pid, ours.recv(100).decode()]
"""


def refuses(name: str, port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection((name, port), timeout=4).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_fork_does_not_keep_the_hosts_connection(world: World) -> None:
    """When the plugin is killed, the host's calls fail at once and nobody listens. The author's sockets stay open."""
    host = probe.start(world)
    pid, text = probe.do(host, "run", FORK_WITH_A_SOCKET)
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
    """An abstract Unix socket has bytes for a name, and comes first here."""
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as listener:
        abstract.bind(f"\0goplugin-{uuid.uuid4()}")
        port = listener.getsockname()[1]
        standard_streams.close_sockets({Address("tcp", f"127.0.0.1:{port}")})
        assert refuses("127.0.0.1", port)
        assert abstract.getsockname()


WORKER = """
import logging, subprocess, time
for preexec_fn in (None, int):
    subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=preexec_fn)
logging.warning("the worker has started them")
time.sleep(3600)
"""


@pytest.mark.parametrize("ways", [["fork"], ["spawn", "forkserver"]], ids=", ".join)
def test_what_workers_start_lives_on(world: World, sleeps: Callable[[], list[psutil.Process]], ways: list[str]) -> None:
    """The workers end with the plugin; other programs that they run do not, however they were started."""
    host = probe.start(world)
    start = f"""
import multiprocessing
def start(way):
    process = multiprocessing.get_context(way).Process(target=exec, args=({WORKER!r}, {{}}))
    process.start()
    return process.pid
result = [start(way) for way in {ways}]
"""
    workers = [psutil.Process(pid) for pid in probe.do(host, "run", start)]
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
    """What it says before the handshake line goes to the log, not into the files that it has opened."""
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
    script.write_text(RIGHT_PLUGIN.replace("print(plugin.listen(server), flush=True)\n", fork))
    host = world.started(script)
    assert {path.name: path.read_text() for path in world.folder.glob("file*")} == {f"file{n}": "" for n in range(8)}
    assert says(host, "|grpc" if kind == "handshake line" else "there is no work")
    assert not host.logged_now("main() ended")


CHILDS_ENDS = {
    "subprocess": "import goplugin; raise ValueError('of a child')",
    "fork of main, text": "sys.exit('of a child')",
    "fork of main, exception": "raise ValueError('of a child')",
}


@pytest.mark.parametrize("kind", CHILDS_ENDS)
def test_the_end_of_a_child_is_not_the_plugins(world: World, kind: str) -> None:
    """What ends it is logged, but not as what ends the plugin."""
    if "main" in kind:
        script = world.folder / "forks.py"
        fork = f"import os\nif os.fork() == 0: {CHILDS_ENDS[kind]}\nos.wait()\nplugin.wait()\n"
        script.write_text(RIGHT_PLUGIN.replace("plugin.wait()\n", fork))
        host = world.started(script)
    else:
        host = probe.start(world)
        probe.do(host, "run", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILDS_ENDS[kind]!r}])")
    assert says(host, "of a child")
    assert host.ask("kill")["seconds"] < 1.9
    assert not host.logged_now("the plugin ends")


@pytest.mark.parametrize("function", ["print, 'good', 'bye', file=sys.stderr", r"sys.stderr.write, 'good bye\n'"])
def test_what_exit_handlers_write_is_no_reason(world: World, function: str) -> None:
    """It is a line of the log, as what they print to stdout is."""
    host = probe.start(world)
    probe.do(host, "run", f"import atexit, sys\natexit.register({function})\natexit.register(print, 'and thanks')")
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
    """As those of C libraries do that call a function of Python's: it is as with every other print."""
    host = probe.start(world)
    probe.do(host, "run", r"import _thread, sys; _thread.start_new_thread(sys.stderr.write, ('some words\n',))")
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
