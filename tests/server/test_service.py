"""The service: many answers at once, each as it would be alone, in turns and by their rules."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import pytest

from chat.conversing import QUESTIONS, Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.request import AnswerStats, Called
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.kernels import native, why_not_native
from gptoss_mlx.server import pool as pool_module
from gptoss_mlx.server.errors import RequestError

from .answering import calling, events_of, message_of, reply, request, run, serving, user

ROUNDS = 6  # test_rounds_of_agents.py has twenty

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def as_it_came(arguments):
    return arguments


def written_anew(arguments):
    return json.dumps(json.loads(arguments), separators=(",", ":"))


@pytest.mark.parametrize("reasoning", [True, False], ids=["with reasoning", "without"])
@pytest.mark.parametrize("arguments", [as_it_came, written_anew])
def test_an_agents_round_costs_its_new_tokens(demo_folder, monkeypatch, arguments, reasoning):
    tokenizer = Tokenizer.load(demo_folder)
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    Scripted.waiting = tokenizer.encode_markup(
        "".join(map(calling, range(ROUNDS))) + "<|channel|>final<|message|>Done.<|return|>"
    )

    async def rounds():
        messages, costs, news = [user("Do it.")], [], []
        async with serving(demo_folder) as service:
            while True:
                events = await events_of(service, request(messages, tools=[TOOL]))
                stats = events[-1]
                costs.append(stats.prompt - stats.cached)
                message = message_of(events, reasoning=reasoning)
                if "tool_calls" not in message:
                    return costs, news
                (call,) = message["tool_calls"]
                call["function"]["arguments"] = arguments(call["function"]["arguments"])
                if not reasoning:  # as a server's protocol does
                    message["reasoning"] = service.reasoning_before(call["id"])
                output = f"result {len(costs)}"
                messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": output}]
                news.append(len(encode(render_message(result("f", output)), tokenizer)))

    costs, news = run(rounds())
    # The end of the call, which was sampled but not read, the result, and the start of the answer.
    assert costs[1:] == [1 + new + 2 for new in news]
    assert len(news) == ROUNDS


def test_a_question_more_costs_the_answer_and_the_question(demo_folder):
    """Harmony drops the reasoning of a finished turn, so that what follows it is read again, as in a chat."""

    async def turns():
        messages, prompts = [], []
        async with serving(demo_folder) as service:
            for question in [each for each in QUESTIONS if "weather" not in each][:6]:
                messages.append(user(question))
                text, stats = await reply(service, messages, max_tokens=100)
                prompts.append(stats)
                messages.append({"role": "assistant", "content": text})
        return prompts

    stats = run(turns())
    for before, after in pairwise(stats):
        assert after.cached >= before.prompt


def conversations():
    first = [user("My locker code is 4711.")]
    for question, answer in (("What is 12 + 30?", "12 + 30 = 42"), ("And my code?", "Your locker code is 4711.")):
        yield first
        first = [*first, {"role": "assistant", "content": answer}, user(question)]
    for question in QUESTIONS[1:7]:
        yield [user(question)]


def test_answers_at_the_same_time_are_those_that_each_gets_alone(demo_folder):
    async def alone():
        async with serving(demo_folder, places=1) as service:
            return [(await reply(service, each, max_tokens=60))[0] for each in conversations()]

    async def together():
        async with serving(demo_folder, places=3) as service:
            tasks = [reply(service, each, max_tokens=60) for each in conversations()]
            texts = [text for text, _ in await asyncio.gather(*tasks)]
            assert (service.pool.leased, service.pool.waiting) == (0, 0)
        return texts

    assert run(alone()) == run(together())


def test_several_answers_share_the_steps_of_the_network(demo_folder, monkeypatch):
    if not native():
        pytest.skip(why_not_native())

    async def together():
        async with serving(demo_folder) as service:
            counts, read = [], service.model.network.hidden_together

            def counted(ids, caches):
                counts.append(len(ids))
                return read(ids, caches)

            monkeypatch.setattr(service.model.network, "hidden_together", counted)
            questions = [[user(f"What is {number} + 30?")] for number in range(4)]
            await asyncio.gather(*(reply(service, each, max_tokens=60) for each in questions))
            return counts

    counts = run(together())
    assert sum(counts) / len(counts) > 2.5


def test_a_client_that_leaves_frees_its_place(demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)

    async def leave():
        async with serving(demo_folder, places=1) as service:
            Scripted.waiting = service.model.tokenizer.encode_markup("<|channel|>final<|message|>" + "word " * 5000)
            async with aclosing(service.answer(request([user("Hello")]))) as events:
                async for event in events:
                    if isinstance(event, Content):
                        break
            Scripted.waiting = service.model.tokenizer.encode_markup("<|channel|>final<|message|>Yes.<|return|>")
            return await reply(service, [user("Are you there?")])

    text, _ = run(leave())
    assert text.endswith("Yes.")


def test_who_waits_comes_in_turn(demo_folder):
    async def queue():
        ended = []

        async def one(service, number):
            await reply(service, [user(f"What is {number} + 1?")], max_tokens=4)
            ended.append(number)

        async with serving(demo_folder, places=1) as service:
            await asyncio.gather(*(one(service, number) for number in range(8)))
        return ended

    assert run(queue()) == list(range(8))


def test_only_a_flood_is_refused(demo_folder, monkeypatch):
    monkeypatch.setattr(pool_module, "MAX_WAITING", 3)

    async def flood():
        async with serving(demo_folder, places=1) as service:
            tasks = [reply(service, [user(f"What is {number} + 1?")], max_tokens=20) for number in range(6)]
            return await asyncio.gather(*tasks, return_exceptions=True)

    refused = [each for each in run(flood()) if isinstance(each, RequestError)]
    assert [(each.status, each.code) for each in refused] == [(429, "rate_limit_exceeded")] * 2


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_read(demo_folder):
    async def long():
        async with serving(demo_folder) as service:
            with pytest.raises(RequestError, match="exceed") as refused:
                await reply(service, [user("word " * service.context)])
            return refused.value, await service.count(request([user("Hello")]))

    error, tokens = run(long())
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert 0 < tokens < 100


def test_an_answer_ends_before_a_stop_text_and_is_read_on_from_what_was_shown(demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)

    async def stopped():
        async with serving(demo_folder) as service:
            Scripted.waiting = service.model.tokenizer.encode_markup(
                "<|channel|>analysis<|message|>Not 7 here<|end|>"
                "<|start|>assistant<|channel|>final<|message|>1 to 7 and 8<|return|>"
            )
            text, stats = await reply(service, [user("Count.")], stop=("7", "and"))
            Scripted.waiting = []
            return text, stats

    text, stats = run(stopped())
    assert text == "1 to "
    assert (stats.reason, stats.stopped_by) == ("stop", "7")


def test_ids_of_calls_differ(demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)

    async def calls():
        async with serving(demo_folder) as service:
            ids = []
            for _ in range(2):
                Scripted.waiting = service.model.tokenizer.encode_markup(calling(1))
                events = await events_of(service, request([user("Do it.")], tools=[TOOL]))
                ids += [event.id for event in events if isinstance(event, Called)]
                assert events[-1].reason == "tool_calls"
            return ids

    first, second = run(calls())
    assert first != second


def test_without_a_tool_the_limit_ends_an_answer(demo_folder):
    async def cut():
        async with serving(demo_folder) as service:
            return (await reply(service, [user("What is gptoss-mlx?")], max_tokens=3))[1]

    stats = run(cut())
    assert isinstance(stats, AnswerStats)
    assert (stats.reason, stats.sampled) == ("length", 3)


def test_bare_text_goes_on(demo_folder):
    async def complete():
        async with serving(demo_folder) as service:
            given = replace(request([]), max_tokens=12)
            events = [event async for event in service.complete("What is 12 + 30?", given)]
            ids = service.model.tokenizer.encode("What is 12 + 30?")
            again = [event async for event in service.complete(ids, given)]
            model = service.model
            expected = await service.thread.call(
                lambda: list(model.generate(ids, sampling=given.sampling, max_tokens=12))
            )
            return events, again, model.tokenizer.decode([i for i in expected if i not in model.tokenizer.specials])

    events, again, expected = run(complete())
    text = "".join(event.text for event in events if isinstance(event, Content))
    assert text == expected
    assert "".join(event.text for event in again if isinstance(event, Content)) == text
    assert (again[-1].prompt, again[-1].cached) == (events[-1].prompt, events[-1].prompt - 1)


def test_closing_ends_running_answers_with_an_error(demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)

    async def close():
        async with serving(demo_folder) as service:
            Scripted.waiting = service.model.tokenizer.encode_markup("<|channel|>final<|message|>" + "word " * 5000)
            begun = asyncio.Event()

            async def read():
                async with aclosing(service.answer(request([user("Hello")]))) as events:
                    async for _ in events:
                        begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            service.close("the server is stopping")
            with pytest.raises(RequestError, match="stopping") as ended:
                await task
            return ended.value

    assert run(close()).status == 503
