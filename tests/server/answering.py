"""Requests to a service, and what comes back, without HTTP."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import gptoss_mlx
from gptoss_mlx import Sampling
from gptoss_mlx.chat.request import AnswerRequest, Called
from gptoss_mlx.harmony.messages import conversation_from_json
from gptoss_mlx.harmony.parse import Content, Reasoning
from gptoss_mlx.server.service import open_service

DATE = "2026-01-02"
GREEDY = Sampling(temperature=0)


def user(text):
    return {"role": "user", "content": text}


def request(messages, *, tools=None, **options):
    data = {"messages": messages, "current_date": DATE} | ({"tools": tools} if tools else {})
    return AnswerRequest(conversation_from_json(data), **{"sampling": GREEDY} | options)


@asynccontextmanager
async def serving(folder, *, places=4, pool_folder=None, disk_limit=0, **options):
    """A service of the model in `folder`."""
    service = await open_service(
        lambda: gptoss_mlx.load(folder, **options), "demo", places=places, folder=pool_folder, disk_limit=disk_limit
    )
    try:
        yield service
    finally:
        service.close("the test is over")


async def events_of(service, request):
    async with aclosing(service.answer(request)) as events:
        return [event async for event in events]


async def reply(service, messages, **options):
    """The text of an answer, and its stats."""
    events = await events_of(service, request(messages, **options))
    return "".join(event.text for event in events if isinstance(event, Content)), events[-1]


def message_of(events, *, reasoning=True):
    """An answer as a client of chat completions sends it back."""
    message = {"role": "assistant", "content": "".join(e.text for e in events if isinstance(e, Content)) or None}
    if reasoning:
        message["reasoning"] = "".join(event.text for event in events if isinstance(event, Reasoning))
    calls = [event for event in events if isinstance(event, Called)]
    if calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
        ]
    return message


def run(coroutine):
    return asyncio.run(coroutine)


def calling(number):
    return (
        f"<|channel|>analysis<|message|>Step {number}.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
        f'<|constrain|>json<|message|>{{"x":{number},  "y": [1,2]}}<|call|>'
    )
