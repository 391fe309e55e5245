import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from itertools import count, pairwise

import pytest

from chat.conversing import QUESTIONS, Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.request import AnswerStats, Called
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.kernels import native, why_not_native
from gptoss_mlx.server import pool as pool_module
from gptoss_mlx.server.errors import RequestError

from .answering import events_of, message_of, reply, request, run, serving, user

ROUNDS = 6  # test_rounds_of_agents.py has twenty

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
DEMO_TOOLS = [
    {"type": "function", "function": {"name": f.tool.name, "parameters": f.tool.parameters}} for f in FUNCTIONS
]


def calling(number):
    return (
        f"<|channel|>analysis<|message|>Step {number}.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
        f'<|constrain|>json<|message|>{{"x":{number},  "y": [1,2]}}<|call|>'
    )


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


def test_spare_time_reads_what_a_next_question_goes_on_from(demo_folder):
    async def turns():
        async with serving(demo_folder) as service:
            asked = [user("What is 12 + 30?")]
            text, _ = await reply(service, asked)
            while service._next_prompts:
                await asyncio.sleep(0.001)
            more = [*asked, {"role": "assistant", "content": text}, user("Thanks.")]
            _, stats = await reply(service, more, max_tokens=1)
            _, again = await reply(service, asked, max_tokens=1)
            return stats, again, len(service.model.tokenizer.encode("Thanks."))

    stats, again, question = run(turns())
    assert stats.prompt - stats.cached == question + len(("<|end|>", "<|start|>", "assistant"))
    assert again.cached == again.prompt - 1


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


def test_an_edit_leaves_the_other_branch_as_it_was(demo_folder):
    rules = {"role": "system", "content": "Be kind, and say what you know. " * 20}

    async def branches():
        async with serving(demo_folder) as service:
            asked = [rules, user("What is 12 + 30?")]
            first, stats = await reply(service, asked)
            longer = [*asked, {"role": "assistant", "content": first}, user("What is 40 - 7?")]
            _, second = await reply(service, longer)
            _, other = await reply(service, [rules, user("What is 81 - 20?")])
            _, again = await reply(service, [*longer[:-1], user("What is 90 - 31?")])
            _, back = await reply(service, longer)
            return stats, second, other, again, back

    stats, second, other, again, back = run(branches())
    assert second.cached >= stats.prompt
    assert other.cached > 128  # the instructions, which both begin with
    assert again.cached >= stats.prompt  # up to where the two questions differ
    assert back.cached == second.prompt - 1


def test_what_is_asked_again_and_again_is_kept_once(demo_folder):
    async def repeated():
        async with serving(demo_folder) as service:
            bytes_, first, longer = [], [user("What is 12 + 30?")], [user("What is 12 + 30?")]
            text, _ = await reply(service, first)
            longer += [{"role": "assistant", "content": text}, user("What is 40 - 7?")]
            for _ in range(5):
                await reply(service, first)
                await reply(service, longer)
                async with aclosing(service.answer(request(first))) as events:
                    await anext(events)
                while await service.thread.call(lambda: bool(service._next_prompts)):
                    await asyncio.sleep(0.01)
                bytes_.append(service.pool.nbytes)
            return bytes_

    bytes_ = run(repeated())
    assert max(bytes_) <= 2 * min(bytes_)


def test_what_memory_has_no_room_for_is_read_back_from_the_disk(demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "WORTH_SAVING", 8)

    async def turns():
        async with serving(demo_folder, pool_folder=tmp_path, disk_limit=10**9) as service:
            text, first = await reply(service, [user("My locker code is 4711.")])
            service.pool.budget = 0
            await service.thread.call(service.pool.trim)
            assert service.pool.nbytes == 0
            assert list(tmp_path.glob("*/*.safetensors"))
            service.pool.budget = 10**9
            messages = [user("My locker code is 4711."), {"role": "assistant", "content": text}, user("Which?")]
            _, second = await reply(service, messages)
            service.pool.budget = 0
            await service.thread.call(service.pool.trim)
            for path in tmp_path.glob("*/*.safetensors"):
                path.write_bytes(b"damaged")
            service.pool.budget = 10**9
            _, third = await reply(service, messages)
            return first, second, third

    first, second, third = run(turns())
    assert second.cached >= first.prompt
    assert third.cached == 0


def test_the_disk_keeps_to_its_limit(demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "WORTH_SAVING", 8)

    async def fill():
        async with serving(demo_folder, pool_folder=tmp_path, disk_limit=1) as service:
            await reply(service, [user("Hello")], max_tokens=5)
            service.pool.budget = 0
            await service.thread.call(service.pool.trim)
            return list(tmp_path.iterdir())

    assert run(fill()) == []


def test_where_memory_is_short_conversations_give_way_and_end_as_alone(demo_folder):
    questions = [[user(question)] for question in QUESTIONS[:3]]

    async def alone():
        async with serving(demo_folder, places=1) as service:
            return [(await reply(service, each, max_tokens=80))[0] for each in questions]

    async def short():
        async with serving(demo_folder, places=3) as service:
            revoked, give_back = [], service.pool.give_back
            service.pool.give_back = lambda lease: (revoked.append(lease.revoked), give_back(lease))
            one = service.pool._empty.bytes_for(256)
            service.pool.budget = 10**9
            tasks = [asyncio.create_task(reply(service, each, max_tokens=80)) for each in questions]
            while service.pool.leased < 3:
                await asyncio.sleep(0.001)
            service.pool.budget = one
            texts = [text for text, _ in await asyncio.gather(*tasks)]
            return texts, revoked

    texts, revoked = run(short())
    assert texts == run(alone())
    assert any(revoked)


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


def test_a_conversation_of_tools_is_not_lost_where_others_come_in_between(demo_folder, monkeypatch):
    """Two agents, turn by turn: each keeps its cache."""
    tokenizer = Tokenizer.load(demo_folder)
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    numbers = count()

    async def rounds():
        costs = []
        async with serving(demo_folder) as service:
            agents = [[user(f"Agent {agent}.")] for agent in range(2)]
            for turn in range(8):
                messages = agents[turn % 2]
                Scripted.waiting = tokenizer.encode_markup(calling(next(numbers)))
                events = await events_of(service, request(messages, tools=[TOOL]))
                message = message_of(events)
                call_id = message["tool_calls"][0]["id"]
                messages += [message, {"role": "tool", "tool_call_id": call_id, "content": "ok"}]
                costs.append(events[-1].prompt - events[-1].cached)
        return costs

    costs = run(rounds())
    assert set(costs[2:]) == {1 + len(encode(render_message(result("f", "ok")), tokenizer)) + 2}


def test_what_was_to_be_read_ahead_is_forgotten_where_a_conversation_goes_on(demo_folder, monkeypatch):
    """Its next answer may end in a call, whose result goes on from all that was read."""
    tokenizer = Tokenizer.load(demo_folder)
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)

    async def turns():
        async with serving(demo_folder) as service:
            service.thread.spare_time, read_ahead = None, service.thread.spare_time
            messages, costs = [user("Agent.")], []
            for script in ("<|channel|>final<|message|>Ready.<|return|>", calling(1), calling(2)):
                Scripted.waiting = tokenizer.encode_markup(script)
                events = await events_of(service, request(messages, tools=[TOOL]))
                costs.append(events[-1].prompt - events[-1].cached)
                messages.append(message_of(events))
                if calls := messages[-1].get("tool_calls"):
                    messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": "ok"})
                    service.thread.spare_time = read_ahead
                    while service._next_prompts:
                        await service.thread.call(lambda: None)
                else:
                    messages.append(user("Now work."))
            return costs

    assert run(turns())[2] == 1 + len(encode(render_message(result("f", "ok")), tokenizer)) + 2


def test_caches_that_gave_way_are_not_kept_for_spare_time(demo_folder):
    """A busy server has none."""

    async def questions():
        async with serving(demo_folder) as service:
            service.thread.spare_time = None
            for number in range(3):
                await reply(service, [user(f"What is {number} + 1?")])
            service.pool.budget = 0
            await service.thread.call(service.pool.trim)
            return [lease.cache.ids for lease in service._next_prompts]

    assert run(questions()) == []
