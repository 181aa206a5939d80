"""Calls that grpc itself would leave unanswered, or would log without a useful text."""

from collections.abc import Callable
from typing import Any

import probe
import pytest
from actions import Call, handlers
from harness import CallError, Host, World, eventually
from probe_plugin import Probe


def errors(host: Host) -> list[dict[str, Any]]:
    """What the plugin logged at level error."""
    return [record for record in host.log() if record["@level"] == "error" and record["@module"] != "host"]


RAISED: list[tuple[Callable[[Call], None], str]] = [
    (handlers.raise_value_error, "Unknown: Exception calling application: it broke"),
    (handlers.raise_without_a_text, "Unknown: Exception calling application: TimeoutError"),
    (handlers.raise_without_a_text_or_arguments, "Unknown: Exception calling application: BdbQuit"),
    (handlers.raise_a_surrogate, r"Unknown: Exception calling application: a\udc80"),
    (handlers.raise_system_exit, "Unknown: SystemExit: 3"),
    (handlers.raise_keyboard_interrupt, "Unknown: KeyboardInterrupt"),
    (handlers.set_code_and_raise, "DataLoss: Exception calling"),
    (handlers.set_status_and_exit, "Aborted: x"),
    (handlers.set_details_and_raise, "Unknown: our text"),
    (handlers.abort, "Aborted: not now"),
]


@pytest.mark.parametrize(("action", "answer"), RAISED, ids=[action.__name__ for action, _ in RAISED])
@pytest.mark.windows
def test_what_a_handler_raises_is_answered_and_logged_once(
    world: World, action: Callable[[Call], None], answer: str
) -> None:
    host = probe.start(world)
    with pytest.raises(CallError) as raised:
        probe.act(host, action, seconds=10)
    assert answer in str(raised.value)
    assert probe.do(host, Probe.echo, 1) == 1
    host.ask("kill")
    logged = errors(host)
    assert len(logged) == (0 if action is handlers.abort else 1)
    for record in logged:
        assert "/probe.Probe/act: " in record["@message"]
        assert "Traceback" in record["stacktrace"]


@pytest.mark.grpcio_only("generators of pygrpc-native end with their caller")
@pytest.mark.windows
def test_threads_of_callers_that_have_left(world: World) -> None:
    """All threads wait in queue.get(). The log names these handlers once."""
    host = probe.start(world)
    probe.act(host, handlers.limit_threads, 6)
    for stream in range(1, 5):
        probe.open_stream(host, stream, "/probe.Streams/wait_in_get")
        assert host.ask("recv", stream=stream)["message"] == b"open"
    for stream in (1, 2, 3):
        host.ask("cancel", stream=stream)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=4)
    record = host.logged("all threads are busy", **{"@level": "warn"})
    assert record
    for text in ("/probe.Streams/wait_in_get (4 running, for up to", "/probe.Probe/block (2 running"):
        assert text in record["@message"]
    assert "3 of them without their caller" in record["@message"]
    host.ask("kill")
    assert len([record for record in host.log() if "all threads are busy" in record["@message"]]) == 1


@pytest.mark.windows
def test_what_is_unfinished_at_shutdown_is_logged(world: World) -> None:
    """It explains why Kill() took so long."""
    host = probe.start(world)
    host.begin("call", method="/probe.Probe/block", message=b"3600", repeat=2)
    host.begin("call", method="/probe.Probe/sleep_then_write", message=probe.message([0.1, str(world.folder / "x")]))
    eventually((world.folder / "x").exists)
    host.ask("kill")
    assert world.gone()
    record = host.logged("leaving, although calls did not end within 1.5 s", **{"@level": "warn"})
    assert record
    assert "/probe.Probe/block (2 running, for up to" in record["@message"]
    assert "sleep_then_write" not in record["@message"]
