"""Calls that grpc itself would not answer, or would not log in a way that helps."""

from typing import Any

import probe
import pytest
from harness import CallError, Host, World, eventually


def errors(host: Host) -> list[dict[str, Any]]:
    """What the plugin logged at error."""
    return [record for record in host.log() if record["@level"] == "error" and record["@module"] != "host"]


def fails(host: Host, code: str, method: str = "run") -> str:
    """What the caller hears when a handler runs the code."""
    with pytest.raises(CallError) as raised:
        probe.do(host, method, code, seconds=10)
    return str(raised.value)


RAISED = {
    "raise ValueError('it broke')": "Unknown: Exception calling application: it broke",
    "raise TimeoutError": "Unknown: Exception calling application: TimeoutError",
    "import bdb; raise bdb.BdbQuit": "Unknown: Exception calling application: BdbQuit",
    "raise ValueError('a\\udc80')": r"Unknown: Exception calling application: a\udc80",
    "raise SystemExit(3)": "Unknown: SystemExit: 3",
    "raise KeyboardInterrupt": "Unknown: KeyboardInterrupt",
    "import grpc; context.set_code(grpc.StatusCode.DATA_LOSS); raise TimeoutError": "DataLoss: Exception calling",
    "from grpc import StatusCode; context.set_code(StatusCode.ABORTED); context.set_details('x'); raise SystemExit": (
        "Aborted: x"
    ),
    "import grpc; context.set_details('our text'); raise ValueError('it broke')": "Unknown: our text",
    "import grpc; context.abort(grpc.StatusCode.ABORTED, 'no')": "Aborted: no",
}


@pytest.mark.parametrize("code", RAISED)
@pytest.mark.windows
def test_what_a_handler_raises_is_answered_and_logged_once(world: World, code: str) -> None:
    host = probe.start(world)
    assert RAISED[code] in fails(host, code)
    assert probe.do(host, "echo", 1) == 1
    host.ask("kill")
    logged = errors(host)
    assert len(logged) == (0 if "abort(" in code else 1)
    for record in logged:
        assert "/probe.Probe/run: " in record["@message"]
        assert "Traceback" in record["stacktrace"]


@pytest.mark.grpcio_only("generators of pygrpc-native end with their caller")
@pytest.mark.windows
def test_threads_of_callers_that_have_left(world: World) -> None:
    """All threads wait in queue.get(): the log says once which handlers do."""
    host = probe.start(world)
    for pool in ("thread_pool", "migration_thread_pool"):
        probe.do(host, "run", f"pool = plugin.server_arguments.get('{pool}')\nif pool: pool._max = 6")
    for stream in range(1, 5):
        host.ask("open", stream=stream, method="/probe.Streams/wait_in_get")
        host.ask("send", stream=stream, message=b"")
        host.ask("half_close", stream=stream)
        assert host.ask("recv", stream=stream)["message"] == b"open"
    for stream in (1, 2, 3):
        host.ask("cancel", stream=stream)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=4)
    record = host.logged("all threads are taken", **{"@level": "warn"})
    assert record
    for text in ("/probe.Streams/wait_in_get (4 running, for up to", "/probe.Probe/block (2 running"):
        assert text in record["@message"]
    assert "3 of them without their caller" in record["@message"]
    host.ask("kill")
    assert len([record for record in host.log() if "all threads are taken" in record["@message"]]) == 1


@pytest.mark.windows
def test_what_is_unfinished_at_shutdown_is_logged(world: World) -> None:
    """It is why Kill() took so long."""
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=2)
    host.begin("call", method="/probe.Probe/sleep_then_write", message=probe.message([0.1, str(world.folder / "x")]))
    eventually((world.folder / "x").exists)
    host.ask("kill")
    assert world.gone()
    record = host.logged("leaving, though calls did not end within 1.5 s", **{"@level": "warn"})
    assert record
    assert "/probe.Probe/block (2 running, for up to" in record["@message"]
    assert "sleep_then_write" not in record["@message"]
