"""A conversation that is longer than the context: the oldest turns are dropped, or the turn is refused."""

import pytest

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.turn import Dropped, TurnStats
from gptoss_mlx.engine.generate import ContextFull
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.memory.plan import EngineConfig

CONTEXT = 500
TURNS = range(110, 122)


@pytest.fixture(scope="module")
def model(demo_folder):
    return load(demo_folder, EngineConfig(context=CONTEXT, kv_bits=16, prefill_chunk=64))


@pytest.fixture(scope="module")
def short(demo_folder):
    return load(demo_folder, EngineConfig(context=300, kv_bits=16, prefill_chunk=64))


class TestWhenTheContextIsFull:
    def session(self, model, **more):
        return Session(model, sampling=Sampling(temperature=0), max_tokens=120, instructions="Be kind.", **more)

    def test_the_oldest_turns_are_dropped_and_it_is_said(self, model):
        session = self.session(model, drop_when_full=True)
        dropped = right = 0
        for a in TURNS:
            events = list(session.send(f"What is {a} + {2 * a}?"))
            dropped += sum(event.messages for event in events if isinstance(event, Dropped))
            assert session.context_used <= CONTEXT
            text = "".join(event.text for event in events if isinstance(event, Content))
            right += text == f"{a} + {2 * a} = {3 * a}"
            if dropped:
                # Dropped turns leave no trace: the answer, right or not, is that of a conversation that begins here.
                fresh = self.session(model).send(f"What is {a} + {2 * a}?")
                assert text == "".join(event.text for event in fresh if isinstance(event, Content))
            assert isinstance(events[-1], TurnStats)
        assert right == len(TURNS)
        assert dropped > 0
        assert session.messages[0].role == "user"
        assert session.instructions == "Be kind."

    def test_or_refused(self, short):
        session = self.session(short)

        def talk():
            for a in TURNS:
                list(session.send(f"What is {a} + {2 * a}?"))

        with pytest.raises(ContextFull):
            talk()
        kept = session.messages
        with pytest.raises(ContextFull):
            list(session.send("What is 1 + 1? " * 200))
        assert session.messages == kept

    def test_one_message_that_is_too_long_is_refused(self, short):
        session = self.session(short, drop_when_full=True)
        list(session.send("What is 1 + 2?"))
        kept = session.messages
        with pytest.raises(ContextFull):
            list(session.send("What is 1 + 1? " * 200))
        assert session.messages == kept

    def test_in_the_chat(self, run, demo_folder):
        questions = "".join(f"What is {a} + {2 * a}?\n" for a in range(110, 115))
        options = ("--temperature", 0, "--max-tokens", 120, "--context", 250)
        result = run("chat", demo_folder, *options, "--when-full", "drop", stdin=questions)
        assert "the context is full: the" in result.stderr
        assert result.stdout.splitlines()[-1] == "114 + 228 = 342"
        refused = run("chat", demo_folder, *options, stdin=questions + "What is 1 + 1? " * 100)
        assert "stopped: the context is full" in refused.stderr
        assert "exceed this run's context of 250: /undo removes" in refused.stderr
