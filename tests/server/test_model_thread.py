import asyncio
import threading
from concurrent.futures import Future
from contextlib import aclosing

import pytest

from gptoss_mlx.chat.turn import Waiting
from gptoss_mlx.server import model_thread
from gptoss_mlx.server.model_thread import ModelThread


def with_thread(test):
    async def main():
        thread = ModelThread()
        try:
            return await asyncio.wait_for(test(thread), 60)
        finally:
            thread.close(RuntimeError("over"))

    return asyncio.run(main())


async def collected(values):
    async with aclosing(values) as all_of_them:
        return [value async for value in all_of_them]


def test_values_arrive_in_order_and_generators_take_turns():
    seen = []

    def counting(name):
        for number in range(50):
            seen.append(name)
            yield number

    async def both(thread):
        gate = threading.Event()
        held = asyncio.create_task(thread.call(gate.wait))  # until both are there
        runs = [asyncio.create_task(collected(thread.run(lambda name=name: counting(name)))) for name in "ab"]
        await asyncio.sleep(0)
        gate.set()
        await held
        return await asyncio.gather(*runs)

    assert with_thread(both) == [list(range(50))] * 2
    assert "".join(seen) == "ab" * 50


def test_the_end_is_not_kept_waiting(monkeypatch):
    monkeypatch.setattr(model_thread, "PACE", 1e6)

    async def test(thread):
        return await collected(thread.run(lambda: iter(range(1000))))

    assert with_thread(test) == list(range(1000))


def test_all_of_a_generator_is_on_one_thread():
    def where():
        try:
            yield threading.current_thread()
        finally:
            closed_on.append(threading.current_thread())

    closed_on = []

    async def threads(thread):
        async with aclosing(thread.run(where)) as values:
            first = await anext(values)
        return [first, await thread.call(threading.current_thread)]

    first, second = with_thread(threads)
    assert first is second is closed_on[0] is not threading.main_thread()


def test_an_error_reaches_who_asked_and_nobody_else():
    def failing():
        yield 1
        raise ValueError("as it happens")

    async def test(thread):
        with pytest.raises(ValueError, match="as it happens"):
            await collected(thread.run(failing))
        return await thread.call(lambda: 7)

    assert with_thread(test) == 7


def test_who_waits_is_stepped_when_its_future_is_done():
    future, order = Future(), []

    def waiting():
        order.append("waits")
        yield Waiting(future)
        order.append("goes on")
        yield future.result()

    async def test(thread):
        run = asyncio.create_task(collected(thread.run(waiting)))
        while not order:
            await thread.call(lambda: None)
        await thread.call(lambda: order.append("another"))
        future.set_result(5)
        return await run

    assert with_thread(test) == [5]
    assert order == ["waits", "another", "goes on"]


@pytest.mark.parametrize("waits", [False, True])
def test_one_that_is_cancelled_is_closed(waits):
    closed, begun = threading.Event(), threading.Event()

    def endless():
        try:
            while True:
                begun.set()
                yield Waiting(Future()) if waits else 1
        finally:
            closed.set()

    async def test(thread):
        run = asyncio.create_task(collected(thread.run(endless)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        while not closed.is_set():
            await thread.call(lambda: None)

    with_thread(test)


def test_closing_ends_what_runs_and_what_waits_and_refuses_what_comes():
    closed = []

    def endless(waits):
        try:
            while True:
                yield Waiting(Future()) if waits else 1
        finally:
            closed.append(waits)

    async def test(thread):
        runs = [asyncio.create_task(collected(thread.run(lambda waits=waits: endless(waits)))) for waits in (0, 1)]
        for _ in range(5):
            await thread.call(lambda: None)
        thread.close(RuntimeError("enough"))
        assert [str(each) for each in await asyncio.gather(*runs, return_exceptions=True)] == ["enough", "enough"]
        with pytest.raises(RuntimeError, match="enough"):
            await thread.call(lambda: None)

    with_thread(test)
    assert sorted(closed) == [0, 1]
