"""A thread pool for grpc.server: few threads for handlers that compute, many for handlers that wait.

It knows nothing of plugins and can be copied into any gRPC server.

Guarantees:

- The first min_threads threads exist when the constructor returns, and stay until shutdown().
- Accepted work is done, unless shutdown(cancel_futures=True) cancels it. If the system has no thread left, work waits
  for the threads that exist, and the pool tries to grow again as long as work waits.
- Handlers that wait for each other get as many threads as they need, up to max_threads.
- No thread is started while no work waits.
- An idle thread sleeps until there is work, or until its life is over. While no work waits, nothing polls.
- All threads are daemons: a handler that never returns does not keep the process alive.

Theory of operation. Python runs one thread at a time. More threads make short handlers slower, because each call then
needs more switches between threads: four threads handle 0.8 of the calls that two handle, sixteen 0.7. But a handler
that waits, for a cloud API or a disk, needs a thread for as long as it waits. The pool cannot ask a handler which kind
it is. So it starts small, and while work waits, a watcher looks every 10 ms whether to grow. The rule is in _growth().

The pool never asks whether it has too many threads. Each thread above min_threads lives for 10 to 20 s and then ends,
busy or not. If it is still needed, the rule starts another.
"""

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# Seconds between two looks. Growth from 2 to 64 threads takes five looks. A shorter look would mistake a pause of the
# machine for an idle process; a longer one keeps handlers waiting.
LOOK = 0.01

# The process is idle if it uses less than this share of one processor. Measured: two threads with short handlers use
# 0.9 and more, and 0.6 under AutoMTLS, where the companion does a part of the work. With 0.7, sixty-four such calls in
# flight got more threads there, and 0.85 of the calls were handled.
IDLE = 0.5

# Handlers are short if each thread finishes at least this many per look: one per millisecond. Such handlers do not wait
# for anything, so if the process seems idle, the system did not let it run.
SHORT = 10

# Work is not stuck if this many tasks end per look, 800 per second, however many threads there are. Without this
# limit, growth would never end: threads that compute share one processor, so each finishes fewer the more there are.
STUCK = 8

_log = logging.getLogger(__name__)

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _growth(threads: int, done: int, idle: bool) -> int:
    """How many threads to add, if work waits and so many tasks ended since the last look."""
    if idle and done < threads * SHORT:
        return threads  # the handlers wait: double
    if done < min(threads, STUCK):
        return 1  # Handlers are long, or something else computes. One at a time, in case the handlers compute.
    return 0  # short handlers keep the processor busy


class Workers(ThreadPoolExecutor):
    """An Executor that grows when work waits, and shrinks with time. It is a subclass because grpc checks for that.

    min_threads: started by the constructor, and kept. max_threads: more work than that waits in a queue.
    life: seconds that a thread above min_threads lives. The later ones of many live longer, up to twice as long, so
    that they do not all end at once.

    when_full: called once, when work waits and there may be no more threads.

    The constructor raises RuntimeError if the system has no thread left.
    """

    def __init__(self, min_threads: int = 2, max_threads: int = 512, *, life: float = 10.0) -> None:
        if not 0 < min_threads <= max_threads:
            raise ValueError(f"Workers needs 0 < min_threads <= max_threads, not {min_threads} and {max_threads}")
        super().__init__(max_threads)
        self._max, self._life, self._pid = max_threads, life, os.getpid()
        self.when_full: Callable[[], object] | None = None
        self._queue = queue.SimpleQueue[_Task | None]()
        self._lock = threading.Lock()  # guards the following
        self._free = 0  # threads that wait for work, less the work in the queue; below 0, work waits for threads
        self._done = 0  # tasks that have ended
        self._threads: set[threading.Thread] = set()
        self._rested = threading.Condition(self._lock)  # all threads wait for work
        self._crowded = threading.Event()  # work waits for threads: the watcher looks
        self._closed = False
        try:
            for _ in range(min_threads):
                self._hire(math.inf)
            threading.Thread(target=self._watch, name="workers-watcher", daemon=True).start()
        except RuntimeError as error:
            self.shutdown()
            raise RuntimeError(f"Workers cannot start {min_threads} threads and their watcher: {error}") from error

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run fn(*args, **kwargs) in a thread of the pool. RuntimeError after shutdown, and in a forked child."""
        if os.getpid() != self._pid:
            raise RuntimeError("cannot schedule new futures in a forked child: the threads are its parent's")
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.put((future, fn, args, kwargs))
            self._free -= 1
            if self._free < 0 and not self._crowded.is_set():
                self._crowded.set()
        return future

    def drain(self, timeout: float) -> bool:
        """Wait until no work runs or waits, at most timeout seconds. False if there still is some."""
        with self._rested:
            return self._rested.wait_for(lambda: self._free == len(self._threads), timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more work. By default, return when all accepted work is done."""
        with self._lock, contextlib.suppress(queue.Empty):
            self._closed = True
            while cancel_futures and (task := self._queue.get_nowait()):
                task[0].cancel()
                self._free += 1
        self._queue.put(None)  # behind the work: each thread that meets it leaves it to the next one, and ends
        self._crowded.set()  # lets the watcher end
        while wait and self._threads:
            for thread in self._threads.copy():
                thread.join()

    def _hire(self, life: float) -> None:
        """Start a thread. RuntimeError if the system has none left."""
        thread = threading.Thread(target=self._work, args=(time.monotonic() + life,), name="worker", daemon=True)
        with self._lock:  # the thread needs it to leave, so it cannot leave before it is counted
            thread.start()
            self._threads.add(thread)
            self._free += 1

    def _watch(self) -> None:
        """While work waits, look every 10 ms whether more threads would help."""
        while not self._closed or self._free < 0:
            self._crowded.wait()
            done, wall, cpu = self._done, time.monotonic(), time.process_time()
            time.sleep(LOOK)
            idle = time.process_time() - cpu < IDLE * (time.monotonic() - wall)
            with self._lock:
                threads = len(self._threads)
                more = min(_growth(threads, self._done - done, idle), -self._free, self._max - threads)
                if self._free >= 0:
                    self._crowded.clear()
                full = self._free < 0 and threads == self._max
            if full and self.when_full:
                self.when_full()
                self.when_full = None
            with contextlib.suppress(RuntimeError):  # none left: the next look tries again
                for number in range(threads, threads + more):
                    self._hire(self._life * (1 + number / self._max))

    def _work(self, end: float) -> None:
        """Run tasks in the calling thread until its life ends."""
        while task := self._next(end - time.monotonic()):
            future, fn, args, kwargs = task
            try:
                if future.set_running_or_notify_cancel():
                    _run(future, fn, args, kwargs)
            except BaseException:  # what a callback of the future raises, other than an Exception: it ends no thread
                _log.exception("a callback of a future raised")
            # Keep nothing of a finished task, a request of 64 MiB say, while the thread waits.
            del task, future, fn, args, kwargs
            with self._lock:
                self._done += 1
                self._free += 1
                if self._free == len(self._threads):
                    self._rested.notify_all()
        with self._lock:
            self._threads.discard(threading.current_thread())
            self._free -= 1
            self._rested.notify_all()
        self._crowded.set()  # work may wait for a thread in its place

    def _next(self, left: float) -> _Task | None:
        """Return the next task, waited for at most `left` seconds. None when the calling thread must end."""
        if left <= 0:
            return None
        try:
            task = self._queue.get(timeout=min(left, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None
        if not task:
            self._queue.put(None)  # the pool is shut down: the next thread must end too
        return task


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:  # the future carries it, as in concurrent.futures
        future.set_exception(error)
    else:
        future.set_result(result)
