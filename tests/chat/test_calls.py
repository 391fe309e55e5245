"""Calls of tools in a turn."""

import json
import re

import pytest

import gptoss_mlx
from chat.conversing import CALL, OPENING, answer, make_session, turn
from gptoss_mlx.chat.turn import ToolResult
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.harmony.messages import Tool
from gptoss_mlx.harmony.parse import ToolCall
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.tools.toolbox import Function


def test_several_calls_in_one_turn(model, script, monkeypatch):
    seen = []
    function = Function(Tool("f"), lambda x: seen.append(x) or {"got": x})
    session = make_session(model, functions=[function])
    first, second = CALL.replace("call", "end"), CALL.replace("1", "2")
    script(f"{first}<|start|>assistant{second}<|channel|>final<|message|>Ok.<|return|>")
    events, _ = turn(session.send("Hello"))
    assert seen == [1, 2]
    assert [event for event in events if isinstance(event, ToolResult)] == [
        ToolResult("f", '{"got": 1}'),
        ToolResult("f", '{"got": 2}'),
    ]
    assert [m.role for m in session.messages] == ["user", "assistant", "assistant", *["functions.f"] * 2, "assistant"]


def test_a_model_that_calls_for_ever_has_to_answer(model, script, monkeypatch):
    session = make_session(model, functions=[Function(Tool("f"), lambda x: x)])
    monkeypatch.setattr("gptoss_mlx.chat.session.MAX_CALLS", 3)
    script(CALL * 3 + "Enough.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Enough.", True)
    assert len([event for event in events if isinstance(event, ToolCall)]) == 3


@pytest.mark.parametrize(
    ("approve", "output"),
    [(None, "nobody is here"), (lambda call, preview: False, "did not allow"), (lambda call, preview: True, "done")],
)
def test_who_may_call(model, script, monkeypatch, approve, output):
    asked = []
    function = Function(Tool("f"), lambda x: "done", asks=True, preview=lambda x: f"run {x}")
    ask = approve and (lambda call, preview: asked.append(preview) or approve(call, preview))
    session = make_session(model, functions=[function], approve=ask)
    script(CALL + "<|channel|>final<|message|>Ok.<|return|>")
    events, _ = turn(session.send("Hello"))
    (result,) = [event for event in events if isinstance(event, ToolResult)]
    assert output in result.output
    assert asked == (["run 1"] if approve else [])


def test_ctrl_c_in_a_tool_is_told_to_the_model(model, script, monkeypatch):
    def stop(x):
        raise KeyboardInterrupt

    session = make_session(model, functions=[Function(Tool("f"), stop)])
    script(CALL + "<|channel|>final<|message|>Ok.<|return|>")
    with pytest.raises(KeyboardInterrupt):
        list(session.send("Hello"))
    assert "stopped this call" in session.messages[-1].content
    events, stats = turn(session.resume())
    assert (answer(events), stats.finished) == ("Ok.", True)


def weather_of(location):
    return {"temperature": 21, "sky": "cloudy"}


def weather_session(model, **options):
    return make_session(model, functions=[Function(FUNCTIONS[0].tool, weather_of)], **options)


@pytest.mark.parametrize("kind", [ToolCall, ToolResult])
def test_stopped_around_a_call_it_goes_on_with_the_call(model, kind):
    """The answer is made of what the tool says, not invented."""
    session = weather_session(model)
    events = session.send("What is the weather in Bermi?")
    next(event for event in events if isinstance(event, kind))
    events.close()
    kept = weather_session(model)
    kept.restore(session.transcript)
    for each in (session, kept):
        events, stats = turn(each.resume())
        assert stats.finished
        assert "21 degrees" in answer(events)


def test_a_result_that_is_too_long_is_told_so(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(600, 16, 64))
    session = make_session(model, functions=[Function(FUNCTIONS[0].tool, lambda location: "no " * 2000)])
    events, stats = turn(session.send("What is the weather in Bermi?"))
    (result,) = [event for event in events if isinstance(event, ToolResult)]
    assert "the context has room for" in json.loads(result.output)["error"]
    assert stats.finished


def test_a_result_that_no_context_holds_is_not_counted_to_its_end(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(600, 16, 64))
    for output, least in (("no " * 10**6, 601), ("n" * 10**6, 10**6 // 13)):
        session = make_session(model, functions=[Function(FUNCTIONS[0].tool, lambda location, output=output: output)])
        events, stats = turn(session.send("What is the weather in Bermi?"))
        (result,) = [event for event in events if isinstance(event, ToolResult)]
        told = re.fullmatch(
            "the result has at least ([0-9,]+) tokens: the context has room for [0-9]+",
            json.loads(result.output)["error"],
        )
        assert int(told[1].replace(",", "")) >= least
        assert stats.finished


@pytest.mark.parametrize("recipient", ["functions.python", "python"])
def test_a_function_may_be_called_like_a_builtin_tool(model, script, recipient):
    session = make_session(model, functions=[Function(Tool("python"), lambda x: {"got": x})])
    script(f'<|channel|>commentary to={recipient} json<|message|>{{"x": 1}}<|call|>{OPENING}Ok.<|return|>')
    events, _ = turn(session.send("Hello"))
    assert [event.output for event in events if isinstance(event, ToolResult)] == ['{"got": 1}']
    _, called, answered, _ = session.messages
    assert (called.recipient, called.channel) == ("functions.python", "commentary")
    assert (answered.role, answered.channel) == ("functions.python", "commentary")
    kept = make_session(model, functions=session.toolbox.functions.values())
    kept.restore(session.transcript)
    assert kept.messages == session.messages
    assert kept._prompt() == session._prompt()
