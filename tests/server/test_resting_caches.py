"""What the pool keeps between turns: in memory, on the disk, and read ahead in spare time."""

import asyncio
from contextlib import aclosing
from itertools import count

from chat.conversing import QUESTIONS, Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.server import pool as pool_module

from .answering import calling, events_of, message_of, reply, request, run, serving, user

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


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
