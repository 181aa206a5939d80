"""The host gets what the plugin prints, through ClientConfig.SyncStdout and SyncStderr."""

import json
import random
import time

import probe
import pytest
from harness import Host, World, eventually
from probe_plugin import Probe

MB = 1_000_000


def random_bytes(seed: int, size: int) -> bytes:
    """The bytes that the probe's print_bytes prints."""
    generator = random.Random(seed)
    return b"".join(generator.randbytes(min(MB, size - start)) for start in range(0, size, MB))


def stdio(host: Host) -> tuple[bytes, bytes]:
    answer = host.ask("stdio")
    return answer["stdout"], answer["stderr"]


def start_to_stall(world: World) -> Host:
    """Start a host that has read something, and stops reading at the first byte of stdout."""
    host = probe.start(world, stall_stdout=True)
    probe.do(host, Probe.print, ["stderr", "ready", 1, 1])
    assert eventually(lambda: stdio(host)[1] == b"ready")
    return host


@pytest.mark.windows
def test_both_streams_reach_the_host(world: World) -> None:
    host = probe.start(world)
    probe.do(host, Probe.print, ["stdout", "to stdout, wörld\n", 1, 1])
    probe.do(host, Probe.print, ["stderr", "to stderr, no line end", 1, 1])
    expected = ("to stdout, wörld\n".encode(), b"to stderr, no line end")
    assert eventually(lambda: stdio(host) == expected), stdio(host)


@pytest.mark.slow
def test_bytes_are_unchanged_100_mb_in_a_row(world: World) -> None:
    host = probe.start(world)
    before = probe.do(host, Probe.memory)
    probe.do(host, Probe.print_bytes, [7, 100 * MB])
    assert eventually(lambda: len(stdio(host)[0]) == 100 * MB)
    assert stdio(host)[0] == random_bytes(7, 100 * MB)
    assert probe.do(host, Probe.memory) - before < 30 * MB


@pytest.mark.windows
def test_several_threads_keep_their_order(world: World) -> None:
    host = probe.start(world)
    line = "# says something long enough to be cut somewhere, if lines were ever cut\n"
    calls = [
        host.begin("call", method="/probe.Probe/print", message=json.dumps([name, line, 5000, 4]).encode())
        for name in ("stdout", "stderr")
    ]
    for call in calls:
        call()
    assert eventually(lambda: all(data.count(b"\n") == 20_000 for data in stdio(host)))
    for data in stdio(host):
        for number in range(4):
            assert data.count(line.replace("#", str(number)).encode()) == 5000


@pytest.mark.windows
def test_long_writes_stay_in_one_piece(world: World) -> None:
    host = probe.start(world)
    line = "#" * 200_000 + "\n"
    host.call("/probe.Probe/print", json.dumps(["stdout", line, 10, 4]).encode())
    assert eventually(lambda: stdio(host)[0].count(b"\n") == 40)
    assert {(set(text), len(text)) == ({text[0]}, 200_000) for text in stdio(host)[0].splitlines()} == {True}


@pytest.mark.windows
def test_a_wrapped_stdout_still_reaches_the_host(world: World) -> None:
    world.env["PROBE_WRAPPED"] = "1"
    host = probe.start(world)
    probe.do(host, Probe.print, ["stdout", "wrapped", 1, 1])
    assert eventually(lambda: stdio(host)[0] == b"wrapped")


def test_logging_that_prints_does_not_lock_up(world: World) -> None:
    """A logging handler prints, and printing may log that the host does not read, which the handler prints again."""
    host = start_to_stall(world)
    probe.do(host, Probe.log_to_stdout)
    calls = [
        host.begin("call", method="/probe.Probe/print_bytes", message=b"[1, 4000000]"),
        *(
            host.begin("call", method="/probe.Probe/log", message=json.dumps([20, "x" * 60_000, {}]).encode())
            for _ in range(40)
        ),
    ]
    for call in calls:
        call()
    assert host.ask("kill")["seconds"] < 4


@pytest.mark.grpcio_only("pygrpc-native may lose the output")
def test_what_is_printed_just_before_shutdown_arrives(world: World) -> None:
    for size in (10, 1000, 300_000, 900_000) * 3:
        host = probe.start(world)
        probe.do(host, Probe.print_bytes, [size, size])
        host.ask("kill")
        assert stdio(host)[0] == random_bytes(size, size)


@pytest.mark.grpcio_only("pygrpc-native keeps more of the output")
def test_a_host_that_does_not_read_blocks_nobody_for_good(world: World) -> None:
    host = start_to_stall(world)
    begin = time.monotonic()
    probe.do(host, Probe.print_bytes, [1, 8 * MB])
    assert 4 < time.monotonic() - begin < 12
    begin = time.monotonic()
    probe.do(host, Probe.print_bytes, [2, 8 * MB])
    assert time.monotonic() - begin < 4
    assert probe.do(host, Probe.memory) < 200 * MB
    assert host.logged("the host does not read what this plugin prints", **{"@level": "warn"})
    host.ask("kill")
    dropped = [record for record in host.log() if "bytes of stdout dropped" in record["@message"]]
    assert sum(int(record["@message"].split()[0]) for record in dropped) > 12 * MB


@pytest.mark.grpcio_only("pygrpc-native keeps more of the output")
def test_nothing_waits_for_a_host_that_never_asks_for_the_output(world: World) -> None:
    """The thread that is about to serve the host's stream may itself print, in a __del__."""
    host = probe.start(world, no_stdio=True)
    begin = time.monotonic()
    probe.do(host, Probe.print_bytes, [1, 70 * MB])
    probe.do(host, Probe.print_bytes, [2, 8 * MB])
    assert time.monotonic() - begin < 4  # PATIENCE is 5 s
    assert probe.do(host, Probe.memory) < 200 * MB
    assert host.logged("the host does not read what this plugin prints", **{"@level": "warn"})
    host.ask("kill")
    dropped = [record for record in host.log() if "bytes of stdout dropped" in record["@message"]]
    assert sum(int(record["@message"].split()[0]) for record in dropped) == 78 * MB


def test_reading_again_ends_the_dropping(world: World) -> None:
    host = start_to_stall(world)
    probe.do(host, Probe.print_bytes, [1, 8 * MB])
    host.ask("resume")
    assert host.logged("bytes of stdout dropped")
    probe.do(host, Probe.print, ["stderr", "; read again", 1, 1])
    assert eventually(lambda: stdio(host)[1] == b"ready; read again")


@pytest.mark.windows
def test_host_leaves_in_the_middle(world: World) -> None:
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/print_bytes", message=b"[1, 50000000]")
    time.sleep(0.2)
    host.ask("disconnect")
    assert host.ask("kill")["seconds"] < 4


def test_a_host_that_is_fast(world: World) -> None:
    """The host may call before print() has written the newline of the handshake line; it must not get that newline."""
    script = world.folder / "fast.py"
    script.write_text(
        "import goplugin, os, threading, plugin\n"
        "write = os.write\n"
        "def write_and_print(fd, data):\n"
        "    written = write(fd, data)\n"
        "    if data.startswith(b'1|1|'):\n"
        "        handler = threading.Thread(target=print, args=('from a handler',))\n"
        "        handler.start(), handler.join()\n"
        "    return written\n"
        "os.write = write_and_print\n"
        "plugin.main()\n"
    )
    host = world.started(script)
    assert eventually(lambda: stdio(host)[0])
    host.ask("kill")
    assert stdio(host)[0] == b"from a handler\n"
