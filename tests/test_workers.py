"""The thread pool by itself, and in the plugin with a Go host."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import probe
import pytest
from conftest import World, eventually

from goplugin import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(2, 64, idle=0.5)
    yield pool
    pool.shutdown()
    assert eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("worker")])


def threads() -> int:
    return len([thread for thread in threading.enumerate() if thread.name == "worker"])


def test_results_and_exceptions(workers: Workers) -> None:
    assert workers.submit(pow, 2, 10).result() == 1024
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result()
    assert list(workers.map(abs, range(-100, 0))) == list(range(100, 0, -1))


def test_work_that_waits_is_done_side_by_side(workers: Workers) -> None:
    """64 pieces that wait for each other: only 64 threads can do it."""
    barrier = threading.Barrier(64)
    done = [workers.submit(barrier.wait, 20) for _ in range(64)]
    assert sorted(future.result() for future in done) == list(range(64))


def test_short_waits_get_threads_too(workers: Workers) -> None:
    """Though some of them is taken up all the time."""
    for future in [workers.submit(time.sleep, 0.004) for _ in range(2000)]:
        future.result()
    assert threads() > 16


def test_what_computes_stays_on_few_threads(workers: Workers) -> None:
    def compute() -> None:
        end = time.thread_time() + 0.0005
        while time.thread_time() < end:
            pass

    for _ in range(50):
        for future in [workers.submit(compute) for _ in range(16)]:
            future.result()
    assert threads() <= 16


def test_never_more_than_the_cap_and_nothing_is_lost() -> None:
    pool = Workers(1, 4)
    done = [pool.submit(time.sleep, 0.02) for _ in range(40)]
    for future in done:
        future.result()
    assert threads() <= 4
    pool.shutdown()


def test_threads_are_given_back(workers: Workers) -> None:
    barrier = threading.Barrier(32)
    for future in [workers.submit(barrier.wait, 20) for _ in range(32)]:
        future.result()
    assert threads() >= 32
    assert eventually(lambda: threads() <= 2)
    assert workers.submit(abs, -1).result() == 1


def test_threads_are_given_back_under_load_too(workers: Workers) -> None:
    """What once was taken for handlers that wait, a pause of the machine say, must not cost for good."""
    barrier = threading.Barrier(32)
    for future in [workers.submit(barrier.wait, 20) for _ in range(32)]:
        future.result()
    then = [thread for thread in threading.enumerate() if thread.name == "worker"]
    busy = True

    def again() -> None:
        time.sleep(0.001)
        if busy:
            workers.submit(again)

    for _ in range(64):  # more than there are threads: none ever rests
        workers.submit(again)
    try:
        assert eventually(lambda: sum(thread.is_alive() for thread in then) <= 2)
    finally:
        busy = False


def test_shutdown_waits_for_all_that_was_taken() -> None:
    pool = Workers(1, 8, patience=0.2)
    done = [pool.submit(time.sleep, 0.3) for _ in range(3)]
    pool.shutdown()
    assert all(future.done() for future in done)
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1)


def test_shutdown_may_cancel_what_waits() -> None:
    pool = Workers(1, 1)
    begun = threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.2)

    running, waiting = pool.submit(work), pool.submit(abs, 1)
    begun.wait()
    pool.shutdown(cancel_futures=True)
    assert running.done()
    assert not running.cancelled()
    assert waiting.cancelled()


def test_drain(workers: Workers) -> None:
    assert workers.drain(0)
    work: Future[None] = workers.submit(time.sleep, 0.3)
    assert not workers.drain(0.05)
    assert workers.drain(10)
    assert work.done()


def test_drains_together_and_after_shutdown(workers: Workers) -> None:
    workers.submit(time.sleep, 0.3)
    other = Workers(2, 2)
    both = [other.submit(workers.drain, 10) for _ in range(2)]
    assert all(future.result() for future in both)
    other.shutdown(wait=False)
    assert other.drain(10)


def test_growth_beside_what_computes(workers: Workers) -> None:
    """A native thread keeps a processor busy: the handlers wait all the same."""
    stop = threading.Event()

    def compute() -> None:
        data = bytes(2**20)
        while not stop.is_set():
            hashlib.sha256(data)  # without the GIL

    native = threading.Thread(target=compute)
    native.start()
    try:
        for future in [workers.submit(time.sleep, 0.015) for _ in range(300)]:
            future.result()
        assert threads() >= 16
    finally:
        stop.set()
        native.join()


@pytest.mark.parametrize("fails", ["worker", "workers-watcher"])
def test_a_thread_that_cannot_start_is_tried_again(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    failed: list[threading.Thread] = []

    def start_later(thread: threading.Thread) -> None:
        if thread.name == fails and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    pool = Workers(2, 8)
    barrier = threading.Barrier(4)  # all four must run at the same time
    done = []
    for _ in range(4):
        done.append(pool.submit(barrier.wait, 20))
        time.sleep(0.02)
    for future in done:
        future.result()
    assert failed
    pool.shutdown()


def test_no_thread_left_in_the_system(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work waits for the threads that there are; none is lost, and the pool grows again later."""
    workers.submit(abs, 1).result()
    start = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        if thread.name == "worker":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    for future in [workers.submit(time.sleep, 0.01) for _ in range(20)]:
        future.result()
    monkeypatch.undo()
    barrier = threading.Barrier(8)
    for future in [workers.submit(barrier.wait, 20) for _ in range(8)]:
        future.result()


def test_64_handlers_that_wait(world: World) -> None:
    """One after the other they would take 6.4 s; two at a time, 3.2."""
    host = probe.start(world)
    probe.do(host, "echo", 1)
    seconds = host.ask("call", method="/probe.Probe/sleep", message=b"0.1", repeat=64)["seconds"]
    assert seconds < 1


def test_idle_threads_do_not_wake_up(world: World) -> None:
    host = probe.start(world)
    host.ask("call", method="/probe.Probe/sleep", message=b"0.1", repeat=32)
    time.sleep(0.3)
    names = {task: (task / "comm").read_text() for task in Path(f"/proc/{world.plugin().pid}/task").iterdir()}
    assert len(names) > 32

    def switches() -> int:
        lines = [line for task in names for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    before = switches()
    time.sleep(2)
    assert switches() - before < 60
