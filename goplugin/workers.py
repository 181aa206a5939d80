"""A thread pool for grpc.server: few threads for handlers that compute, many for handlers that wait.

It knows nothing of plugins and can be copied into any gRPC server. Python runs one thread at a time, so handlers
that compute are fastest on few threads; handlers that wait (for a cloud API, a disk) each need a thread. So the pool
starts small and grows only when work waits and more threads would help.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Workers(ThreadPoolExecutor):
    """An Executor that grows when work waits and shrinks when it does not.

    It is a ThreadPoolExecutor by name alone, because grpc asks for that class.

    min_threads: kept, once started. max_threads: more work than that waits in a queue.
    patience: seconds that work waits, none of it being taken up, before the pool grows.
    idle: seconds after which a thread above min_threads ends for want of work. One that always has work ends after
    once to twice as long: if more threads do not help any more, there are soon fewer, and if they do, another starts.

    Its threads are daemons: a handler that never returns does not keep the process alive. It takes up memory until it
    is shut down, or the process ends.
    """

    def __init__(
        self, min_threads: int = 2, max_threads: int = 512, *, patience: float = 0.005, idle: float = 10.0
    ) -> None:
        if not 0 < min_threads <= max_threads:
            raise ValueError(f"Workers needs 0 < min_threads <= max_threads, not {min_threads} and {max_threads}")
        super().__init__(max_threads)
        self._min, self._max, self._patience, self._idle = min_threads, max_threads, patience, idle
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        self._resting: list[_Worker] = []  # a stack: the last to rest is the first to work, so the others can end
        self._all: set[_Worker] = set()
        self._taken = 0  # tasks taken up so far; only ever compared
        self._pressed = threading.Event()  # work waits: somebody must watch whether it is taken up
        self._watcher: threading.Thread | None = None
        self._rested = threading.Condition(self._lock)  # no work runs or waits
        self._short_until = 0.0  # the system had no thread left: until then none is given up that works
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run fn(*args, **kwargs) in a thread of the pool; RuntimeError after shutdown."""
        future: Future[Any] = Future()
        task = (future, fn, args, kwargs)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._resting:
                self._resting.pop().give(task)
                return future
            self._waiting.append(task)
            if len(self._all) < self._min:
                self._hire()
            if self._waiting and not self._pressed.is_set():
                self._press()
        return future

    def drain(self, timeout: float) -> bool:
        """Wait until no work runs or waits, at most timeout seconds; whether it was so."""
        with self._rested:
            return self._rested.wait_for(lambda: len(self._resting) == len(self._all) and not self._waiting, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; by default, wait until what was taken is done."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                for task in self._waiting:
                    task[0].cancel()
                self._waiting.clear()
            for worker in self._resting:
                worker.give(None)
            self._resting.clear()
        self._pressed.set()  # lets the watcher end
        while wait:
            with self._lock:
                running = next(iter(self._all), None)
            if running is None:
                break
            running.thread.join()
            self._leave(running)

    def _hire(self) -> None:
        """Start a thread for the first of the waiting work, if the system has one left. Called with the lock held."""
        # The ends of those that start together are spread, so that never many are missed at a time.
        worker = _Worker(self, time.monotonic() + self._idle * (1 + len(self._all) % 16 / 16))
        try:
            worker.thread.start()
        except RuntimeError:  # the work waits for the threads that there are, or for the next try
            self._short_until = time.monotonic() + self._idle
            return
        worker.give(self._waiting.popleft())
        self._all.add(worker)

    def _press(self) -> None:
        """Have the watcher watch the waiting work. Called with the lock held."""
        if self._watcher is None:
            watcher = threading.Thread(target=self._watch, name="workers-watcher", daemon=True)
            try:
                watcher.start()
            except RuntimeError:  # tried again with the next work
                return
            self._watcher = watcher
        self._pressed.set()

    def _watch(self) -> None:
        """Double the threads whenever work has waited although more threads would help.

        At once if for the pool's patience none of the work was taken up and the process was idle, unless the whole
        machine paused. Else handlers may be computing, and more threads only slow them down: so that is judged over
        four times as long, and more threads help if the process was idle for most of it, or if each handler took long.
        """
        looks = 0
        while not self._closed or self._waiting:
            if not self._pressed.is_set():
                self._pressed.wait()
                looks = 0
            look = self._look()
            if looks == 0:
                first = look
            time.sleep(self._patience)
            now = self._look()
            looks += 1
            paused = now.time - look.time > 2 * self._patience
            grow = look.idle_until(now) and look.taken == now.taken and not paused
            if looks == 4:
                # Few for few threads; many threads that compute take up no more than few do.
                grow = grow or first.idle_until(now) or now.taken - first.taken < 2 * min(len(self._all), 8)
                looks = 0
            with self._lock:
                if not self._waiting:
                    self._pressed.clear()
                elif grow:
                    for _ in range(min(len(self._all), len(self._waiting), self._max - len(self._all))):
                        self._hire()

    def _look(self) -> "_Look":
        return _Look(time.monotonic(), time.process_time(), self._taken)

    def _next(self, worker: "_Worker") -> _Task | None:
        """The worker's next task, waited for; None when its thread shall end."""
        with self._lock:
            old = time.monotonic() > max(worker.end, self._short_until) and len(self._all) > self._min
            if not old and self._waiting:
                self._taken += 1
                return self._waiting.popleft()
            if old or self._closed:
                self._all.discard(worker)  # at once, so that others count right
            else:
                self._resting.append(worker)
            if len(self._resting) == len(self._all):
                self._rested.notify_all()
            if worker not in self._all:
                return None
        if not worker.wait(self._idle if len(self._all) > self._min else -1):
            with self._lock:
                if worker in self._resting and len(self._all) > self._min:
                    self._resting.remove(worker)
                    self._all.discard(worker)
                    return None
            worker.wait(-1)  # given a task in the last moment, or needed after all
        return worker.task

    def _leave(self, worker: "_Worker") -> None:
        with self._lock:
            self._all.discard(worker)
            if len(self._resting) == len(self._all):
                self._rested.notify_all()


class _Look(NamedTuple):
    """What the watcher sees: the time, and the processor time used so far, in seconds; how many tasks were taken up."""

    time: float
    cpu: float
    taken: int

    def idle_until(self, later: "_Look") -> bool:
        """Whether less than half a processor was used in between."""
        return later.cpu - self.cpu < (later.time - self.time) / 2


class _Worker:
    """One thread, and the place where it is given its next task. end: when, by time.monotonic(), it is old."""

    def __init__(self, pool: Workers, end: float) -> None:
        self.end = end
        self.task: _Task | None = None
        self._given = threading.Lock()
        self._given.acquire()
        self.thread = threading.Thread(target=self._run, args=(pool,), name="worker", daemon=True)

    def give(self, task: _Task | None) -> None:
        self.task = task
        self._given.release()

    def wait(self, timeout: float) -> bool:
        return self._given.acquire(timeout=timeout)

    def _run(self, pool: Workers) -> None:
        try:
            self.wait(-1)
            task = self.task
            while task is not None:
                future, fn, args, kwargs = task
                if future.set_running_or_notify_cancel():
                    try:
                        result = fn(*args, **kwargs)
                    except BaseException as error:  # the future carries it, as in concurrent.futures
                        future.set_exception(error)
                    else:
                        future.set_result(result)
                        del result
                # Nothing of a finished task, a request of 64 MiB say, is kept while the thread rests.
                del task, future, fn, args, kwargs
                self.task = None
                task = pool._next(self)
        finally:
            pool._leave(self)
