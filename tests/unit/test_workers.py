"""The thread pool by itself, and in the plugin with a Go host.

No test measures speed. Handlers that wait do so until something happens. Where it matters, a test replaces the clock
that tells an idle process from a busy one, so that a loaded machine changes nothing.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from harness import PATIENCE, eventually

from goplugin import Workers
from goplugin import workers as module


@pytest.fixture
def make() -> Iterator[Callable[..., Workers]]:
    """Makes Workers(...), and shuts them down after the test; no thread may stay."""
    pools = []

    def made(*args: int, life: float = 0.5) -> Workers:
        pools.append(Workers(*args, life=life))
        return pools[-1]

    yield made
    for pool in pools:
        pool.shutdown()
    assert eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("worker")])


@pytest.fixture
def workers(make: Callable[..., Workers]) -> Workers:
    return make(2, 64)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process seems to use one processor all the time."""
    monkeypatch.setattr(time, "process_time", time.monotonic)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "worker"]


def together(pool: Workers, number: int) -> None:
    """Do `number` pieces of work that wait for each other, so that they need as many threads."""
    barrier = threading.Barrier(number)
    done = [pool.submit(barrier.wait, PATIENCE) for _ in range(number)]
    assert sorted(future.result() for future in done) == list(range(number))


@contextlib.contextmanager
def load(pool: Workers, work: Callable[[], object], flight: int) -> Iterator[None]:
    """Keep `flight` pieces of work in flight."""
    stop = threading.Event()

    def again() -> None:
        work()
        if not stop.is_set():
            pool.submit(again)

    for _ in range(flight):
        pool.submit(again)
    try:
        yield
    finally:
        stop.set()


def test_results_and_exceptions(workers: Workers) -> None:
    assert isinstance(workers, ThreadPoolExecutor)  # grpc checks this
    assert workers.submit(pow, 2, 10).result() == 1024
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result()
    with pytest.raises(SystemExit):
        workers.submit(exit).result()
    assert list(workers.map(abs, range(-100, 0))) == list(range(100, 0, -1))


@pytest.mark.parametrize("sizes", [(0, 1), (3, 2)])
def test_sizes_are_checked(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min_threads"):
        Workers(*sizes)


def test_the_first_threads_exist_from_the_start(make: Callable[..., Workers]) -> None:
    make(3, 8)
    assert len(threads()) == 3
    # Otherwise a handler that never returns would keep the process alive.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("worker"))


@pytest.mark.parametrize(
    ("threads", "done", "idle", "more"),
    [
        (2, 0, True, 2),  # both threads wait in their handlers
        (2, 5, True, 2),  # handlers that wait 4 ms
        (2, 50, True, 0),  # short handlers, but the machine paused
        (16, 27, True, 16),
        (2, 50, False, 0),  # handlers that do nearly nothing
        (2, 12, False, 0),  # handlers that compute for 0.5 ms, on few threads ...
        (64, 12, False, 0),  # ... and on many threads, which must not become more
        (2, 0, False, 1),  # handlers that compute for a long time
        (9, 7, False, 1),  # handlers that wait while others compute
    ],
)
def test_the_rule(threads: int, done: int, idle: bool, more: int) -> None:
    assert module._growth(threads, done, idle) == more


@pytest.mark.parametrize("idle", [True, False])
def test_the_rule_is_asked_while_work_waits(
    idle: bool, make: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, bool]] = []

    def growth(threads: int, done: int, idle: bool) -> int:
        asked.append((threads, done, idle))
        return 0

    monkeypatch.setattr(module, "_growth", growth)
    monkeypatch.setattr(time, "process_time", (lambda: 0.0) if idle else time.monotonic)
    pool, stop = make(2, 8), threading.Event()
    for _ in range(3):
        pool.submit(stop.wait, PATIENCE)
    assert eventually(lambda: (2, 0, idle) in asked)
    assert len(threads()) == 2
    stop.set()


def test_work_that_waits_is_done_side_by_side(workers: Workers) -> None:
    together(workers, 64)


@pytest.mark.usefixtures("busy")
def test_work_that_waits_gets_threads_beside_what_computes(workers: Workers) -> None:
    together(workers, 24)


def test_short_waits_get_threads_too(workers: Workers) -> None:
    """Although the pool starts some of the work all the time."""
    with load(workers, lambda: time.sleep(0.004), 64):
        assert eventually(lambda: len(threads()) > 16)


@pytest.mark.usefixtures("busy")
def test_what_computes_stays_on_few_threads(workers: Workers) -> None:
    """64 are in flight. The pool adds a thread only if the machine gets almost nothing done for 10 ms."""
    done = itertools.count()
    with load(workers, lambda: next(done), 64):
        assert eventually(lambda: next(done) > 10_000)
    assert len(threads()) < 32


def test_never_more_than_the_cap_and_nothing_is_lost(
    make: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def double(threads: int, done: int, idle: bool) -> int:
        looks.append(threads)
        return threads

    monkeypatch.setattr(module, "_growth", double)
    pool, go = make(1, 4), threading.Event()
    done = [pool.submit(go.wait, PATIENCE) for _ in range(40)]
    assert eventually(lambda: looks[-3:] == [4, 4, 4])  # the pool asked again, but got no more threads
    assert len(threads()) == 4
    go.set()
    assert all(future.result() for future in done)


def test_threads_are_given_back(workers: Workers) -> None:
    together(workers, 32)
    assert eventually(lambda: len(threads()) == 2)
    together(workers, 4)


def test_threads_are_given_back_under_load_too(workers: Workers) -> None:
    """A pause of the machine can look like waiting handlers; the threads that it adds must not stay for good."""
    together(workers, 32)
    then = threads()
    with load(workers, lambda: time.sleep(0.001), 64):  # more work than threads, so no thread ever rests
        assert eventually(lambda: sum(thread.is_alive() for thread in then) == 2)


def test_work_that_comes_while_a_thread_ends_is_not_forgotten(
    make: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    following, go = Workers._next, threading.Event()
    late: list[Future[int]] = []

    def submit_at_the_end(pool: Workers, worker: Any) -> Any:
        task = following(pool, worker)
        if not task and not late:
            late.append(pool.submit(abs, -1))  # there are still as many threads as tasks
        return task

    monkeypatch.setattr(Workers, "_next", submit_at_the_end)
    pool = make(1, 2, life=0.01)
    waiting = pool.submit(go.wait, PATIENCE)
    pool.submit(abs, 1).result()
    assert eventually(lambda: late)
    assert late[0].result(PATIENCE) == 1
    go.set()
    assert waiting.result()


def test_nothing_of_finished_work_is_kept(workers: Workers) -> None:
    class Request:
        pass

    request = Request()
    kept = weakref.ref(request)
    future = workers.submit(lambda request: None, request)
    del request
    future.result()
    assert eventually(lambda: kept() is None)


def test_shutdown_waits_for_all_that_was_accepted(make: Callable[..., Workers]) -> None:
    pool, go = make(1, 1), threading.Event()
    done = [pool.submit(go.wait, PATIENCE) for _ in range(3)]
    timer = threading.Timer(0.05, go.set)
    timer.start()
    pool.shutdown()
    assert all(future.done() and future.result() for future in done)
    timer.join()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)


def test_growth_goes_on_after_shutdown(make: Callable[..., Workers]) -> None:
    pool, barrier = make(1, 8), threading.Barrier(8)
    done = [pool.submit(barrier.wait, PATIENCE) for _ in range(8)]
    pool.shutdown()
    assert all(future.done() for future in done)


def test_shutdown_may_cancel_what_waits(make: Callable[..., Workers]) -> None:
    pool, done, go = make(1, 1), threading.Event(), threading.Event()

    def work() -> bool:
        done.set()
        return go.wait(PATIENCE)

    running, waiting = pool.submit(work), pool.submit(abs, 1)
    assert done.wait(PATIENCE)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    assert not running.done()
    go.set()
    assert running.result()
    assert pool.drain(PATIENCE)


def test_drain(workers: Workers) -> None:
    assert workers.drain(0)
    go = threading.Event()
    done = [workers.submit(go.wait, PATIENCE) for _ in range(3)]
    assert not workers.drain(0.05)
    go.set()
    assert workers.drain(PATIENCE)
    assert all(future.done() for future in done)


def test_drain_returns_as_soon_as_all_is_done(workers: Workers, make: Callable[..., Workers]) -> None:
    done, go = threading.Event(), threading.Event()
    workers.submit(go.wait, PATIENCE)

    def drain() -> bool:
        done.set()
        return workers.drain(2 * PATIENCE)

    drained = make(1, 1).submit(drain)
    assert done.wait(PATIENCE)
    go.set()
    assert drained.result(PATIENCE)


def test_drains_together_and_after_shutdown(workers: Workers, make: Callable[..., Workers]) -> None:
    go, other = threading.Event(), make(2, 2)
    workers.submit(go.wait, PATIENCE)
    both = [other.submit(workers.drain, PATIENCE) for _ in range(2)]
    go.set()
    assert all(future.result() for future in both)
    other.shutdown(wait=False)
    assert other.drain(PATIENCE)


@pytest.mark.parametrize(("name", "number"), [("worker", 0), ("worker", 1), ("workers-watcher", 0)])
def test_no_thread_left_at_the_start(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked = threading.Thread.start, []

    def start_some(thread: threading.Thread) -> None:
        asked.append(thread.name)
        if asked.count(name) > number:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(RuntimeError, match="Workers cannot start 2 threads and their watcher: can't start new thread"):
        Workers(2, 8)
    assert eventually(lambda: not threads())


def test_no_thread_left_later(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work waits for the existing threads. No work is lost, and the pool grows again later."""
    refused = []

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    barrier = threading.Barrier(8)
    with monkeypatch.context() as no_more:
        no_more.setattr(threading.Thread, "start", refuse)
        early = [workers.submit(eventually, lambda: refused) for _ in range(20)]
        assert all(future.result() for future in early)
        late = [workers.submit(barrier.wait, PATIENCE) for _ in range(8)]
        tries = len(refused)
        assert eventually(lambda: len(refused) > tries)
        assert len(threads()) == 2
    for future in late:
        future.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told(workers: Workers) -> None:
    with workers._lock:  # as another thread may hold it
        child = os.fork()
        if not child:
            try:
                workers.submit(abs, 1)
            except RuntimeError as error:
                os._exit(0 if "forked child" in str(error) else 1)
            finally:
                os._exit(2)
    status = eventually(lambda: os.waitpid(child, os.WNOHANG)[0] and "ended", 5)
    if not status:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status, "submit hangs"
    assert workers.submit(abs, -1).result() == 1
