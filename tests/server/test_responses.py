"""The Responses API: the events of a stream in their order, and what a reply says; openai's package reads both."""

import base64
import json
import threading

import pytest

from gptoss_mlx.chat.request import Called, TokenLogprobs
from gptoss_mlx.chat.turn import Prefill, Thought
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.parse import Content, Reasoning
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from server.loopback import begins, refusal, stats
from server.responding import (
    COMMAND,
    agent_body,
    answer,
    ask,
    called,
    frames,
    function,
    items_of,
    said,
    types,
    without_ids,
)

ENCRYPTED = ["reasoning.encrypted_content"]
LIFECYCLE = ["response.created", "response.in_progress"]
TEXT = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
TEXT = [f"response.{name}" for name in [*TEXT, "output_item.done"]]
REASONING = [name.replace("output_text", "reasoning_text") for name in TEXT]
ARGUMENTS = [f"response.function_call_arguments.{name}" for name in ("delta", "done")]
CALL = ["response.output_item.added", *ARGUMENTS, "response.output_item.done"]


SCRIPTS = {
    "an answer": said("Hello."),
    "no reasoning": [begins(Content, "Hello."), stats()],
    "a call": called("exec_command", '{"cmd": "ls"}'),
    "a call after a preamble": called("exec_command", '{"cmd": "ls"}', preamble="I look."),
    "two calls": [*called("exec_command", "{}")[:-1], Called("call_2", "write_stdin", "no JSON"), stats("tool_calls")],
    "a call in a namespace": called("functions.multi_agent_v1.spawn_agent", '{"message": "x"}'),
    "two messages of one kind": [begins(Content, "One."), begins(Content, "Two."), stats()],
    "two thoughts": [begins(Reasoning, "One."), begins(Reasoning, "Two."), Thought(4, 0.1), *said("Yes.")],
    "nothing": [Prefill(0, 9), Prefill(9, 9), stats()],
    "cut off": [begins(Reasoning, "I"), begins(Content, "The "), stats("length")],
    "cut off while it reasons": [begins(Reasoning, "I"), stats("length")],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_stream_is_in_order_and_says_what_the_reply_says(client, service, of_openai, script):
    service.begin(*script)
    body = agent_body(store=True)
    events = frames(client.post("/v1/responses", json=body))
    for event in events:
        of_openai["event"].validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert types(events[:2]) == LIFECYCLE
    assert all(event["response"]["status"] == "in_progress" for event in events[:2])
    final = events[-1]["response"]
    assert types(events[-1:]) == [f"response.{final['status']}"]
    assert not any("response" in event for event in events[2:-1])
    assert items_of(events[2:-1]) == final["output"]
    reply = answer(client, **body | {"stream": False})
    of_openai["response"].validate_python(reply)
    assert without_ids(reply) == without_ids(final)


def test_the_events_of_a_call_after_a_preamble(client, service):
    service.begin(*called("exec_command", '{"cmd": "ls"}', "call_7", preamble="I look."))
    events = frames(client.post("/v1/responses", json=agent_body()))
    assert types(events) == [*LIFECYCLE, *REASONING, *TEXT, *CALL, "response.completed"]
    reasoning, preamble, call_ = without_ids(events[-1]["response"]["output"])
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I act."}]
    assert reasoning["summary"] == []
    assert base64.b64decode(reasoning["encrypted_content"].partition(":")[2]) == b"I act."
    assert (preamble["phase"], preamble["content"][0]["text"]) == ("commentary", "I look.")
    assert call_ == {
        "type": "function_call",
        "status": "completed",
        "call_id": "call_7",
        "name": "exec_command",
        "arguments": '{"cmd": "ls"}',
    }


def test_the_events_of_an_answer(client, service):
    service.begin(*said("Hello."))
    events = frames(ask(client, stream=True))
    twice = [[*form[:3], form[2], *form[3:]] for form in (REASONING, TEXT)]
    assert types(events) == [*LIFECYCLE, *twice[0], *twice[1], "response.completed"]
    reasoning, message = events[-1]["response"]["output"]
    assert reasoning["encrypted_content"] is None
    assert message["phase"] == "final_answer"


def test_usage(client, service):
    service.begin(begins(Content, "Yes."), stats(prompt=900, cached=800, sampled=70, reasoning=60))
    for usage in (answer(client)["usage"], frames(ask(client, stream=True))[-1]["response"]["usage"]):
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (900, 70, 970)
        assert usage["input_tokens_details"]["cached_tokens"] == 800
        assert usage["output_tokens_details"]["reasoning_tokens"] == 60


def test_an_answer_that_is_cut_off_is_incomplete(client, service):
    service.begin(*SCRIPTS["cut off"])
    reply = answer(client)
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in reply["output"]] == ["completed", "incomplete"]
    assert reply["usage"]["total_tokens"] == 15


def test_an_error_in_the_middle(client, service):
    service.begin(begins(Content, "The "), GptOssError("the model is gone"))
    events = frames(ask(client, stream=True))
    assert types(events) == [*LIFECYCLE, *TEXT, "response.failed"]
    final = events[-1]["response"]
    assert final["error"] == {"code": "server_error", "message": "the model is gone"}
    assert final["output"][0]["status"] == "incomplete"
    response = ask(client)
    assert refusal(response)[0] == 500


def test_an_error_after_a_call_is_no_failure_that_would_have_it_run_again(client, service, of_openai):
    service.begin(*called("exec_command", "{}")[:-1], GptOssError("the model is gone"))
    events = frames(ask(client, stream=True, tools=[COMMAND]))
    assert types(events) == [*LIFECYCLE, *REASONING, *CALL, "response.incomplete"]
    of_openai["event"].validate_python(events[-1])
    assert events[-1]["response"]["error"]["message"] == "the model is gone"


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_too_long_is_refused_before_the_stream(client, service, stream):
    service.begin(RequestError("200,000 tokens are too many", code="context_length_exceeded", param="input"))
    response = ask(client, stream=stream)
    assert refusal(response) == (400, "input", "200,000 tokens are too many")
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_long_prefill_is_bridged_by_events(client, service, monkeypatch):
    """It ends when events have come: no clock decides."""
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.01)
    enough = threading.Event()
    service.begin(Prefill(0, 9), lambda: enough.wait(60), *said("Yes."))
    seen = []
    with client.stream("POST", "/v1/responses", json={"input": "Hi", "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if types(seen).count("response.in_progress") == 4:
                    enough.set()
    assert types(seen[:5]) == ["response.created", *["response.in_progress"] * 4]
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert types(seen[-1:]) == ["response.completed"]


def test_log_probabilities(client, service, of_openai):
    tops = ((b"Hel", -0.1), (b"\xe4", float("-inf")))
    service.begin(
        TokenLogprobs(b"\xe2", -0.5, ()),
        begins(Content, "Hel"),
        TokenLogprobs(b"Hel", -0.1, tops),
        Content("lo."),
        TokenLogprobs(b"lo.", -0.2, ()),
        stats(),
    )
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = frames(ask(client, stream=True, **fields))
    assert service.requests[-1].logprobs == 2
    for event in events:
        of_openai["event"].validate_python(event)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(each["delta"], len(each["logprobs"])) for each in deltas] == [("Hel", 2), ("lo.", 1)]
    (part,) = answer(client, **fields)["output"][0]["content"]
    assert part["text"] == "Hello."
    assert [entry["bytes"] for entry in part["logprobs"]] == [[0xE2], list(b"Hel"), list(b"lo.")]
    assert part["logprobs"][1]["top_logprobs"][1] == {"token": "\ufffd", "bytes": [0xE4], "logprob": -9999.0}
    answer(client, include=["message.output_text.logprobs"])
    assert service.requests[-1].logprobs == 0
    answer(client)
    assert service.requests[-1].logprobs is None


# With openai's package.


def test_openai_streams_strictly(openai, service):
    service.begin(*said("Hello."))
    with openai.responses.stream(model="gpt-oss-20b", input="Hi") as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_response()
    assert seen[:2] == LIFECYCLE
    assert final.output_text == "Hello."
    assert final.usage.total_tokens == 15


def test_openai_parses_answers(openai, service):
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    service.begin(*said('{"name": "Ann", "age": 3}'))
    assert openai.responses.parse(model="m", input="Who?", text_format=Person).output_parsed == Person(
        name="Ann", age=3
    )
    assert service.requests[-1].conversation.response_schema["required"] == ["name", "age"]
    with openai.responses.stream(model="m", input="Who?", text_format=Person) as stream:
        assert stream.get_final_response().output_parsed == Person(name="Ann", age=3)


def test_openai_runs_a_loop_of_tools(openai, service):
    tool = function("weather", city="string") | {"strict": True}
    service.begin(*called("weather", '{"city": "Bermi"}', "call_9", preamble="I look."))
    first = openai.responses.create(model="m", input=[{"role": "user", "content": "Weather?"}], tools=[tool])
    (asked,) = [item for item in first.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": asked.call_id, "output": "rain"}
    service.begin(*said("It rains."))
    history = [{"role": "user", "content": "Weather?"}, *first.output, output]
    whole = openai.responses.create(model="m", input=history, tools=[tool])
    assert whole.output_text == "It rains."
    sent_whole = service.requests[-1].conversation
    openai.responses.create(model="m", input=[output], previous_response_id=first.id, tools=[tool])
    assert service.requests[-1].conversation == sent_whole
