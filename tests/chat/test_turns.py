"""The cost of a turn in tokens; and that going back, on or anew changes nothing in the answers."""

import dataclasses

import mlx.core as mx
import pytest

import gptoss_mlx
from chat.conversing import QUESTIONS, START_OF_ANSWER, answer, length, make_session, turn
from gptoss_mlx import GptOssError
from gptoss_mlx.engine.prompt_cache import PromptCache
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import Content, Reasoning
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.model.kv_cache import MAX_SNAPSHOTS

UNFED = 1  # the last token sampled, or its replacement


@pytest.mark.parametrize("turns", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_turns_prefill_only_what_is_new(model, turns):
    """Of an earlier turn, what is left without its reasoning; of this one, the question and what tools answered."""
    session = make_session(model)
    new = len(session._head()) + START_OF_ANSWER
    for question in QUESTIONS[:turns]:
        before = len(session.messages)
        _, stats = turn(session.send(question))
        said = session.messages[before:]
        assert [message.role for message in said].count("functions.get_weather") == ("weather" in question)
        new += length(session, said[:1])
        results = [message for message in said if message.role.startswith("functions.")]
        if results:
            new += UNFED + length(session, results) + START_OF_ANSWER
        assert stats.prefilled == new, question
        # What the next prompt has beside its question: this turn without its reasoning; if there was none, it is held.
        left = [message for message in said[1:] if message.channel != "analysis"]
        new = length(session, left) if len(left) < len(said[1:]) else UNFED + START_OF_ANSWER
    assert session.context_used < model.context


@pytest.mark.parametrize("turns", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_results_equal_a_cold_start(model, turns):
    """Each turn again, by a session that reads the whole conversation so far in one go."""
    session = make_session(model)
    for question in QUESTIONS[:turns]:
        cold = make_session(model)
        cold.restore(session.transcript)
        events, stats = turn(session.send(question))
        cold_events, cold_stats = turn(cold.send(question))
        assert events == cold_events, question
        assert session.transcript == cold.transcript
        assert stats.prefilled < cold_stats.prefilled or question is QUESTIONS[0]


def state_of(session):
    return [array[:, :, : session.context_used] for array in session.prompt_cache.cache.arrays()]


def test_going_back_leaves_no_trace_bit_for_bit(model):
    """A session that took questions back and was interrupted, and one that never did: the same KV cache. (A retry reads
    one token by itself, which rounds differently from the same token among others.)"""
    straight, winding = make_session(model), make_session(model)
    for question in QUESTIONS[:3]:
        list(straight.send(question))
    list(winding.send(QUESTIONS[0]))
    list(winding.send("What is 55 + 28?"))
    assert winding.undo() == "What is 55 + 28?"
    list(winding.send(QUESTIONS[1]))
    events = winding.send("What is gptoss-mlx?")
    next(event for event in events if isinstance(event, Reasoning))
    events.close()
    winding.undo()
    list(winding.send(QUESTIONS[2]))
    assert winding.messages == straight.messages
    assert winding.context_used == straight.context_used
    for ours, theirs in zip(state_of(winding), state_of(straight), strict=True):
        assert mx.array_equal(ours, theirs)


def test_undo_edit_and_retry_read_only_what_differs(model):
    session = make_session(model)
    list(session.send(QUESTIONS[0]))
    list(session.send("What is 12 + 30?"))
    (_, first), question = turn(session.send("Hello")), Message("user", "Hello")
    session.undo()
    assert turn(session.send("Hello"))[1].prefilled == 1
    assert turn(session.retry())[1].prefilled == 1
    session.undo()
    other = Message("user", "What is 40 - 7?")
    expected = first.prefilled - length(session, [question]) + length(session, [other])
    events, stats = turn(session.send(other.content))
    assert answer(events) == "40 - 7 = 33"
    # The state behind the last answer was overwritten: the mark of the turn before is the longest prefix.
    assert stats.prefilled == expected


def test_prefilled_ahead_only_the_message_is_left(model):
    session = make_session(model)
    opening = len(encode(list(render_message(Message("user", "")))[:3], session.tokenizer))

    def prefilled_and_asked(question):
        steps = 0
        while session.prefill_ahead(5):
            steps += 1
        assert session.prefill_ahead(5) == 0
        _, stats = turn(session.send(question))
        assert stats.prefilled == length(session, [Message("user", question)]) - opening + START_OF_ANSWER
        return steps

    assert prefilled_and_asked(QUESTIONS[0]) > 1  # the instructions and tools
    assert prefilled_and_asked(QUESTIONS[2]) > 1  # the first answer
    session.undo()
    assert prefilled_and_asked("What is 55 + 28?") == 0
    session.reset()
    assert prefilled_and_asked("What is 31 + 31?") == 0  # the instructions are still there


def test_marks_stay_few(model):
    session = make_session(model, reasoning_effort="none")
    for _ in range(MAX_SNAPSHOTS + 2):
        list(session.send("What is 12 + 30?"))
    assert len(session.prompt_cache.snapshots) == MAX_SNAPSHOTS
    assert session.prompt_cache.snapshots[0].offset == len(session._head())


@pytest.mark.parametrize("limits", [(12, 30), pytest.param((3, 45), marks=pytest.mark.slow)])
def test_an_answer_that_breaks_off_is_told_and_goes_on(model, limits):
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    for limit in limits:
        session = make_session(model, functions=(), max_tokens=limit)
        events, stats = turn(session.send("What is gptoss-mlx?"))
        texts, parts = answer(events), 1
        while not stats.finished:
            events, stats = turn(session.resume())
            assert stats.prefilled == 1
            texts += answer(events)
            parts += 1
        assert parts > 1
        assert session.messages == whole.messages
        assert texts == whole.messages[-1].content
        with pytest.raises(GptOssError, match="nothing to go on with"):
            session.resume()


def test_a_failed_continuation_leaves_the_draft_as_it_was(model, monkeypatch):
    session = make_session(model, functions=(), max_tokens=12)
    list(session.send("What is gptoss-mlx?"))
    before, left, logits = (session._draft, list(session._draft.written)), [1, 1, 1], model.network.logits
    with monkeypatch.context() as patch:
        patch.setattr(model.network, "logits", lambda hidden: logits(hidden) if left.pop() else None)
        with pytest.raises(IndexError):
            list(session.resume())
    assert (session._draft, session._draft.written) == before
    session.max_tokens = None
    assert turn(session.resume())[1].finished


def test_an_interrupted_answer_goes_on(model):
    session = make_session(model, functions=())
    events = session.send("What is gptoss-mlx?")
    seen = ""
    for event in events:
        seen += event.text if isinstance(event, Content) else ""
        if len(seen) > 10:
            break
    events.close()
    assert session.messages[-1] == Message("assistant", seen, "final")
    rest = answer(session.resume())
    assert session.messages[-1].content == seen + rest
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    assert session.messages == whole.messages


@pytest.mark.parametrize("turns", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_token_computed_ahead_changes_nothing(model, look_ahead, turns):
    """As on a GPU, where the state already holds the token that ends an answer."""
    sessions = []
    for ahead in (False, True):
        look_ahead(ahead)
        session = make_session(model)
        for question in QUESTIONS[:turns]:
            list(session.send(question))
        session.undo()
        events = session.send("What is gptoss-mlx?")
        next(event for event in events if isinstance(event, Content))
        events.close()
        assert len(session.prompt_cache.ids) == session.context_used
        list(session.resume())
        sessions.append(session)
    plain, ahead = sessions
    assert ahead.messages == plain.messages
    assert ahead.stats[-1].finished


@pytest.mark.parametrize("counts", [(5, 33), pytest.param((1, 12, 25), marks=pytest.mark.slow)])
def test_what_was_broken_off_is_known_after_a_restart(model, counts):
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    for count in counts:
        session = make_session(model, functions=(), max_tokens=count)
        list(session.send("What is gptoss-mlx?"))
        kept = make_session(model, functions=())
        kept.restore(session.transcript)
        assert turn(kept.resume())[1].finished
        assert kept.messages == whole.messages


def test_ids_outside_the_vocabulary_are_not_taken(model):
    session = make_session(model, functions=())
    list(session.send("Hello"))
    transcript = session.transcript
    for wrong in (-7, 10**9):
        ids = (*transcript.ids[:-1], (*transcript.ids[-1][:-1], wrong, transcript.ids[-1][-1]))
        session.restore(dataclasses.replace(transcript, ids=ids))
        assert turn(session.send("Hello"))[1].finished
        session.restore(transcript)


def test_an_answer_at_the_end_of_the_context_goes_on_where_turns_are_dropped(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(260, 16, 64))
    session = make_session(model, functions=(), drop_when_full=True)
    stats = None
    for number in range(6):
        _, stats = turn(session.send(f"What is {number} + 30?"))
        while not stats.finished:
            _, stats = turn(session.resume())
    assert session.messages[-1].content == "5 + 30 = 35"


def test_going_back_step_by_step(model):
    ids = [1 + number % 1000 for number in range(300)]
    stepped, straight = PromptCache(model), PromptCache(model)
    for end in (300, 299, 298):
        stepped.prepare(ids[:end], 1000)
    ours, theirs = stepped.read([*ids[:298], 7]), straight.read([*ids[:298], 7])
    assert mx.abs(ours - theirs).max() < 0.01
