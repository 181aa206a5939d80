"""A thread pool for grpc.server. Handlers that compute get few threads, handlers that wait get many.

It knows nothing of plugins and can be copied into any gRPC server.

Guarantees:

- The first min_threads threads exist when the constructor returns, and stay until shutdown().
- Accepted work gets done, unless shutdown(cancel_futures=True) cancels it. If the system has no thread left, work waits
  for the threads that exist, and the pool tries to grow again while work waits.
- Handlers that wait for each other get as many threads as they need, up to max_threads.
- The pool starts threads only while work waits.
- An idle thread sleeps until there is work, or until its life is over. While no work waits, nothing polls.
- All threads are daemons: a handler that never returns does not keep the process alive.

Theory of operation. Python runs one thread at a time. More threads make short handlers slower, because each call then
needs more switches between threads: four threads handle 0.8 times as many calls as two, sixteen 0.7 times as many. But
a handler that waits for a cloud API or a disk needs a thread while it waits. The pool cannot know which kind a handler
is. So it starts small, and while work waits, a watcher decides every 10 ms whether to grow. The rule is in _growth().

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

# Seconds of one look. Growth from 2 to 64 threads takes five looks. A shorter look would mistake a pause of the machine
# for an idle process; a longer one keeps handlers waiting.
LOOK = 0.01

# The process is idle if it uses less than this share of one processor. Measured: two threads with short handlers use
# 0.9 or more, and 0.6 under AutoMTLS, where the companion does part of the work. With 0.7, the pool grew under AutoMTLS
# when 64 such calls were in flight, and handled only 0.85 times as many calls.
IDLE = 0.5

# Handlers are short if each thread finishes at least this many tasks per look: one per millisecond. Such handlers wait
# for nothing. So if the process seems idle, the system did not let it run.
SHORT = 10

# Work is not stuck if this many tasks end per look, 800 per second, whatever the number of threads. Without this limit,
# growth would never end: threads that compute share one processor, so more threads mean fewer tasks per thread.
STUCK = 8

_log = logging.getLogger(__name__)

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _growth(threads: int, done: int, idle: bool) -> int:
    """Return how many threads to add when work waits. done: tasks that ended since the last look."""
    if idle and done < threads * SHORT:
        return threads  # the handlers wait: double
    if done < min(threads, STUCK):
        return 1  # Handlers are long, or something else computes. One at a time, in case the handlers compute.
    return 0  # short handlers keep the processor busy


class Workers(ThreadPoolExecutor):
    """An Executor that grows when work waits, and shrinks with time. It subclasses ThreadPoolExecutor for grpc's check.

    min_threads: threads that the constructor starts and the pool keeps. max_threads: more work than that waits.
    life: seconds that a thread above min_threads lives. Later threads live longer, up to twice as long, so that they do
    not all end at once.

    when_full(): called once, when work waits and all max_threads threads exist.

    ValueError if the numbers do not fit. RuntimeError if the system has no thread left.
    """

    def __init__(self, min_threads: int = 2, max_threads: int = 512, *, life: float = 10.0) -> None:
        if not 0 < min_threads <= max_threads:
            raise ValueError(f"Workers needs 0 < min_threads <= max_threads, not {min_threads} and {max_threads}")
        super().__init__(max_threads)
        self._max, self._life, self._pid = max_threads, life, os.getpid()
        self.when_full: Callable[[], object] | None = None
        self._queue = queue.SimpleQueue[_Task | None]()
        self._lock = threading.Lock()  # guards the following
        self._free = 0  # threads that wait for work, minus tasks in the queue; below 0, work waits for threads
        self._done = 0  # tasks that have ended
        self._threads: set[threading.Thread] = set()
        self._rested = threading.Condition(self._lock)  # notified when all threads wait for work
        self._crowded = threading.Event()  # set while work waits for threads: the watcher runs
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
            raise RuntimeError("cannot schedule new futures in a forked child: only its parent has the threads")
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
        """Wait until no work runs or waits, at most timeout seconds. False if some still does."""
        with self._rested:
            return self._rested.wait_for(lambda: self._free == len(self._threads), timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more work. By default, return when all accepted work is done."""
        with self._lock, contextlib.suppress(queue.Empty):
            self._closed = True
            while cancel_futures and (task := self._queue.get_nowait()):
                task[0].cancel()
                self._free += 1
        self._queue.put(None)  # behind the work: each thread that gets it puts it back for the next one, and ends
        self._crowded.set()  # lets the watcher end
        while wait and self._threads:
            for thread in self._threads.copy():
                thread.join()

    def _hire(self, life: float) -> None:
        """Start a thread. RuntimeError if the system has none left."""
        thread = threading.Thread(target=self._work, args=(time.monotonic() + life,), name="worker", daemon=True)
        with self._lock:  # the thread needs the lock to leave, so it cannot leave before it is counted
            thread.start()
            self._threads.add(thread)
            self._free += 1

    def _watch(self) -> None:
        """While work waits, decide every 10 ms whether to start threads."""
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
            with contextlib.suppress(RuntimeError):  # the system has no thread left: the next look tries again
                for number in range(threads, threads + more):
                    self._hire(self._life * (1 + number / self._max))

    def _work(self, end: float) -> None:
        """Run tasks in the calling thread until its life ends."""
        while task := self._next(end - time.monotonic()):
            future, fn, args, kwargs = task
            try:
                if future.set_running_or_notify_cancel():
                    _run(future, fn, args, kwargs)
            except BaseException:  # from a callback of the future, such as SystemExit: the thread must go on
                _log.exception("a callback of a future raised")
            # Do not keep a finished task in memory while the thread waits: its request may have 64 MiB.
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
        self._crowded.set()  # work may need a new thread instead

    def _next(self, left: float) -> _Task | None:
        """Wait at most `left` seconds for the next task, and return it. None if the calling thread must end."""
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
    except BaseException as error:  # the future passes it on, as in concurrent.futures
        future.set_exception(error)
    else:
        future.set_result(result)
