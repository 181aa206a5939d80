"""The broker under multiplexing: plain calls play the host's part. test_multiplex.py has a real host."""

import gc
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from harness import eventually

from goplugin.address import Address
from goplugin.services import broker, host_pb2, knocks
from goplugin.transport import Multiplexed


class Streams(Multiplexed):
    """Notes the addresses that the broker opens and closes."""

    _hop: Any = ()  # a Unix socket needs no credentials

    def __init__(self) -> None:
        self.opened: list[Address] = []
        self.closed: list[Address] = []

    def open(self) -> Address:
        self.opened.append(Address("unix", f"/nowhere/{len(self.opened)}"))
        return self.opened[-1]

    def close(self, address: Address) -> None:
        self.closed.append(address)


class Side:
    """The plugin's broker, with the host's end of the broker's stream."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.broker = broker.Broker(self.streams, {"options": ()})
        self.begin()

    def begin(self) -> None:
        """The host opens its stream."""
        self._said: queue.SimpleQueue[host_pb2.ConnInfo | None] = queue.SimpleQueue()
        self._heard = self.broker.StartStream(iter(self._said.get, None), Mock())

    def dial(self, service_id: int) -> Future[Address]:
        return self.broker._address_of(service_id)

    def knock(self) -> int:
        """Wait for the next knock and return its id."""
        info = next(self._heard)
        assert info.knock.knock
        assert not info.knock.ack
        return info.service_id

    def answer(self, service_id: int, error: str = "") -> None:
        self._said.put(host_pb2.ConnInfo(service_id=service_id, knock={"knock": True, "ack": True, "error": error}))

    def end(self) -> None:
        """The host cancels its stream."""
        self._heard.close()  # type: ignore[attr-defined]
        self._said.put(None)


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    for module in (knocks, broker):
        monkeypatch.setattr(module, "TIMEOUT", 1.0)
    monkeypatch.setattr(knocks, "KNOCK_AGAIN", 0.1)
    side = Side()
    yield side
    side.end()


def test_one_knock_at_a_time(side: Side) -> None:
    first, second = side.dial(1), side.dial(2)
    assert side.knock() == 1
    side.answer(1)
    assert side.knock() == 2
    side.answer(2)
    assert [first.result(5), second.result(5)] == side.streams.opened
    assert not side.streams.closed


def test_who_gives_up_lets_the_next_one_knock(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next dial knocks at once. Nobody needs the host's late answer, but the host waits for a stream."""
    monkeypatch.setattr(knocks, "TIMEOUT", 4.0)
    begin = time.monotonic()
    first, second = side.dial(1), side.dial(2)
    assert side.knock() == 1
    first.cancel()
    assert side.knock() == 2
    assert time.monotonic() - begin < 2
    side.answer(1)
    side.answer(2)
    assert second.result(5) is side.streams.opened[1]
    assert side.streams.closed == side.streams.opened[:1]


def test_a_dial_after_one_that_was_given_up(side: Side) -> None:
    """The host answers both knocks, so it needs two streams; otherwise it would take the stream of another id."""
    side.dial(1).cancel()
    again = side.dial(1)
    assert [side.knock(), side.knock()] == [1, 1]
    side.answer(1)
    assert again.result(5) is side.streams.opened[0]
    side.answer(1)
    assert eventually(lambda: len(side.streams.closed) == 1, 5)
    assert side.streams.closed == side.streams.opened[1:]


def test_each_dial_may_be_refused_once(side: Side) -> None:
    first, second = side.dial(1), side.dial(1)
    side.knock()
    side.answer(1, "no listener for id 1")
    side.knock()
    side.answer(1, "no listener for id 1")
    for _ in range(2):
        assert side.knock() == 1
        side.answer(1)
    assert {first.result(5), second.result(5)} == set(side.streams.opened)
    third = side.dial(1)
    for _ in range(2):
        side.knock()
        side.answer(1, "no such door")
    with pytest.raises(ValueError, match="cannot dial id 1: no such door"):
        third.result(5)


def test_whoever_is_refused_does_not_keep_python_from_its_end(side: Side) -> None:
    side.dial(1)
    side.knock()
    side.answer(1, "no listener for id 1")
    (timer,) = eventually(lambda: [one for one in threading.enumerate() if isinstance(one, threading.Timer)], 5)
    assert timer.daemon


def test_dials_before_the_hosts_stream_and_after_it(side: Side) -> None:
    """They wait as long as other dials. The broker sends a pending knock on the next stream, if it is not too late."""
    first, second = side.dial(1), side.dial(2)
    assert side.knock() == 1
    side.end()
    begin = time.monotonic()
    for future in (first, second):
        with pytest.raises(TimeoutError, match=r"the host did not open it within 1 s"):
            future.result(10)
    assert time.monotonic() - begin < 5
    early = side.dial(3)
    side.begin()
    assert [side.knock(), side.knock()] == [2, 3]
    side.answer(2)
    side.answer(3)
    assert early.result(5) is side.streams.opened[1]
    assert side.streams.closed == side.streams.opened[:1]


def test_a_dial_for_which_there_was_no_thread(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            side.dial(1)
    second = side.dial(2)
    assert side.knock() == 2
    side.answer(2)
    second.result(5)


def test_a_host_that_is_silent_leaves_no_thread(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has opened the id but does not speak. The channel goes when nobody holds it any more."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(Path(folder) / "s"))
        silent.listen()
        address: Any = Future()
        address.set_result(Address("unix", str(Path(folder) / "s")))
        monkeypatch.setattr(side.broker, "_address_of", lambda service_id: address)
        before = threading.active_count()
        side.broker.dial(1)
        assert eventually(lambda: gc.collect() >= 0 and side.streams.closed, 5)
        assert eventually(lambda: threading.active_count() <= before, 5)
