"""What handlers do in the event loop: each function is an `async def`."""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from actions import Call

# Ways to end by an exception.


async def raise_value_error(call: Call) -> None:
    raise ValueError("it broke")


async def raise_system_exit(call: Call) -> None:
    raise SystemExit("no credentials")


async def raise_keyboard_interrupt(call: Call) -> None:
    raise KeyboardInterrupt


async def raise_cancelled_error(call: Call) -> None:
    raise asyncio.CancelledError("gone")


async def wait_for_a_cancelled_task(call: Call) -> None:
    task = asyncio.ensure_future(asyncio.sleep(9))
    task.cancel()
    await task


async def cancel_itself(call: Call) -> None:
    task = asyncio.current_task()
    assert task
    task.cancel()
    await asyncio.sleep(9)


async def abort(call: Call) -> None:
    await call.context.abort(grpc.StatusCode.ABORTED, "no")


async def abort_with_a_surrogate(call: Call) -> None:
    await call.context.abort(grpc.StatusCode.ABORTED, "a\udc80")


async def set_details_with_a_surrogate_and_raise(call: Call) -> None:
    call.context.set_details("a\udc80")
    raise ValueError("b")


async def set_status_with_a_surrogate_and_raise(call: Call) -> None:
    call.context.set_code(grpc.StatusCode.DATA_LOSS)
    call.context.set_details("a\udc80")
    raise ZeroDivisionError


async def set_code_and_raise(call: Call) -> None:
    call.context.set_code(grpc.StatusCode.DATA_LOSS)
    raise ValueError("it broke")


# Cancellation. Files show how far a handler got.


async def note_cancellation(call: Call) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        Path("cancelled").touch()  # noqa: ASYNC240
        raise


async def swallow_cancellation(call: Call) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            Path("swallowed").touch()  # noqa: ASYNC240


async def clean_up_when_cancelled(call: Call) -> None:
    Path("begun").touch()  # noqa: ASYNC240
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.5)
        Path("clean").touch()  # noqa: ASYNC240


# The broker.


async def wait_for_dials(call: Call, number: int) -> list[str]:
    """Dial so many ids that nobody serves. Returns the types of the exceptions."""
    waits = [call.plugin.broker.dial(1000 + service_id) for service_id in range(number)]
    results = await asyncio.gather(*waits, return_exceptions=True)
    return sorted({type(result).__name__ for result in results})


async def cancel_a_dial(call: Call, service_id: int) -> bool:
    task: asyncio.Future[Any] = asyncio.ensure_future(call.plugin.broker.dial(service_id))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def cancel_a_dial_and_dial_again(call: Call, service_id: int) -> list[Any]:
    task = asyncio.ensure_future(call.plugin.broker.dial(service_id))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with await call.plugin.broker.dial(service_id) as channel:
        answer = await channel.unary_unary("/any.Service/Method")(b"again", timeout=5)
    await asyncio.sleep(0.5)
    return [task.cancelled(), answer.decode()]


async def cancel_many_dials(call: Call, service_id: int) -> None:
    for _ in range(60):
        with contextlib.suppress(asyncio.TimeoutError):
            dial = call.plugin.broker.dial(service_id)
            async with await asyncio.wait_for(dial, random.uniform(0.0005, 0.004)):
                pass
    await asyncio.sleep(0.5)


async def dial_and_close(call: Call) -> None:
    await (await call.plugin.broker.dial(1)).close()


async def accept_and_close(call: Call) -> None:
    await (await call.plugin.broker.accept(7, lambda server: None)).close()


CONNECTS = {"accept": accept_and_close, "dial": dial_and_close}


async def connect_while_the_companion_is_stopped(call: Call, how: str, companion: int) -> float:
    """The longest time for which the event loop did nothing else meanwhile."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.1)
    os.kill(companion, signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (companion, signal.SIGCONT)).start()
    await CONNECTS[how](call)
    await asyncio.sleep(0.1)
    ticking.cancel()
    return longest


# Other things.


async def print_hello(call: Call) -> None:
    print("hello")


async def fork(call: Call) -> int:
    """The pid of a child, which returns from the handler, too."""
    return os.fork()
