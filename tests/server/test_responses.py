"""The Responses API over HTTP: events in their order, what a request means to the model, and what is kept."""

import base64
import json
import threading

import pytest
from pydantic import TypeAdapter

from gptoss_mlx.chat.request import Called, TokenLogprobs
from gptoss_mlx.chat.turn import Prefill, Thought
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Message, call, result
from gptoss_mlx.harmony.parse import Content, Reasoning
from gptoss_mlx.server import sse
from gptoss_mlx.server.bodies import json_object
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.fields import Fields
from gptoss_mlx.server.response_events import ResponseWriter
from gptoss_mlx.server.response_request import read_request
from gptoss_mlx.server.response_store import ResponseStore
from server.loopback import begins, refusal, stats
from server.responding import AGENT_TOOLS, COMMAND, agent_body, called, frames, function, said, text_message

ENCRYPTED = ["reasoning.encrypted_content"]
LIFECYCLE = ["response.created", "response.in_progress"]
TEXT = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
TEXT = [f"response.{name}" for name in [*TEXT, "output_item.done"]]
REASONING = [name.replace("output_text", "reasoning_text") for name in TEXT]
ARGUMENTS = [f"response.function_call_arguments.{name}" for name in ("delta", "done")]
CALL = ["response.output_item.added", *ARGUMENTS, "response.output_item.done"]


@pytest.fixture(scope="module")
def of_openai():
    """Checks values by the types of openai's package, which parse strictly here."""
    from openai.types.responses import Response, ResponseStreamEvent

    return {"event": TypeAdapter(ResponseStreamEvent), "response": TypeAdapter(Response)}


def ask(client, **fields):
    return client.post("/v1/responses", json={"input": "Hi"} | fields)


def answer(client, **fields):
    response = ask(client, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def types(events):
    return [event["type"] for event in events]


def without_ids(value):
    """What an answer says, whenever it was given."""
    if isinstance(value, dict):
        own = ("id", "item_id", "created_at", "completed_at")
        return {name: without_ids(each) for name, each in value.items() if name not in own}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


# The events of a stream.

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


def items_of(events):
    """The items that the events say, each of them begun, grown and ended before the next."""
    done, item = [], None
    for event in events:
        assert event["output_index"] == len(done)
        name = event["type"].removeprefix("response.")
        if name == "output_item.added":
            assert item is None
            item = event["item"]
            assert item["status"] == "in_progress"
            text = None
        elif name == "output_item.done":
            assert event["item"]["id"] == item["id"]
            grown = item | {"status": event["item"]["status"]}
            if "encrypted_content" in item:
                grown["encrypted_content"] = event["item"]["encrypted_content"]
            assert event["item"] == grown
            done.append(event["item"])
            item = None
        else:
            assert event["item_id"] == item["id"]
            kind, step = name.rsplit(".", 1)
            if kind == "content_part" and step == "added":
                assert item["content"] == []
                part, text = event["part"], ""
                assert part["text"] == ""
            elif step == "delta":
                text = (text or "") + event["delta"]
            elif kind == "content_part":
                assert event["part"] == part | {"text": text}
                item["content"].append(event["part"])
            else:
                field = {"function_call_arguments": "arguments", "custom_tool_call_input": "input"}.get(kind, "text")
                assert event[field] == text
                if field != "text":
                    item[field] = text
    assert item is None
    return done


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


# Items, as the model reads them.


def messages_of(client, service, items, **fields):
    service.begin()
    answer(client, input=items, **fields)
    return list(service.requests[-1].conversation.messages)


def reasoning_item(text, **changes):
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, "encrypted_content": None} | changes


def call_item(name, arguments, id_="call_1", **changes):
    return {"type": "function_call", "call_id": id_, "name": name, "arguments": arguments} | changes


def output_item(output, id_="call_1", **changes):
    return {"type": "function_call_output", "call_id": id_, "output": output} | changes


def test_a_loop_of_tools(client, service):
    broken = '{"cmd": "ls'
    later = [
        reasoning_item("First."),
        text_message("assistant", "I look."),
        call_item("exec_command", broken, id="fc_1", status="completed"),
        output_item("no such", id="fco_1"),
        reasoning_item("Then."),
        call_item("spawn_agent", "{}", "call_2", namespace="multi_agent_v1"),
        call_item("exec_command", {"cmd": 1}, "call_3"),
        output_item([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "call_3"),
        output_item(None, "call_2"),
    ]
    service.begin()
    assert client.post("/v1/responses", json=agent_body(*later)).status_code == 200
    assert list(service.requests[-1].conversation.messages[4:]) == [
        Message("assistant", "First.", "analysis"),
        Message("assistant", "I look.", "commentary"),
        call("exec_command", broken),
        result("exec_command", "no such"),
        Message("assistant", "Then.", "analysis"),
        call("multi_agent_v1.spawn_agent", "{}"),
        call("exec_command", '{"cmd": 1}'),
        result("exec_command", "ab"),
        result("multi_agent_v1.spawn_agent", ""),
    ]


def test_roles_and_forms_of_messages(client, service):
    items = [
        {"role": "system", "content": "Be brief."},
        text_message("user", "a", "b"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "id": "msg_1"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"type": "message", "role": "user", "content": None, "status": "completed", "extra": {"x": 1}},
    ]
    assert messages_of(client, service, items, instructions="First.") == [
        Message("developer", "First."),
        Message("developer", "Be brief."),
        Message("user", "ab"),
        Message("assistant", "No.", "final"),
        Message("developer", "Be kind."),
        Message("user", ""),
    ]


@pytest.mark.parametrize("empty", ["", []])
def test_a_warm_up_without_input(client, service, empty):
    assert messages_of(client, service, empty, max_output_tokens=1) == []
    assert service.requests[-1].max_tokens == 1


def test_texts_before_calls_are_preambles_whether_or_not_their_phase_says_so(client, service):
    items = [
        text_message("user", "1"),
        text_message("assistant", "Let me see."),
        reasoning_item("Hm."),
        call_item("f", "{}"),
        output_item("2"),
        text_message("assistant", "Nearly.", phase="commentary"),
        text_message("assistant", "Done."),
        text_message("user", "3"),
        call_item("f", "{}", "call_2"),
    ]
    texts = {each.content: each.channel for each in messages_of(client, service, items) if each.role == "assistant"}
    assert (texts["Let me see."], texts["Nearly."], texts["Done."]) == ("commentary", "commentary", "final")


def test_reasoning_is_taken_back_in_either_form(client, service):
    service.begin(*said("Yes."))
    (item, _) = answer(client, include=ENCRYPTED)["output"]
    assert item["encrypted_content"]
    for kept in ("content", "encrypted_content"):
        returned = {name: item[name] for name in ("type", "id", "summary", kept)}
        assert messages_of(client, service, [returned]) == [Message("assistant", "I think.", "analysis")]
    assert messages_of(client, service, [reasoning_item("", encrypted_content="gAAAAB")]) == []
    damaged = ask(client, input=[reasoning_item("", encrypted_content=item["encrypted_content"] + "?")])
    assert refusal(damaged)[:2] == (400, "input[0].encrypted_content")


def test_reasoning_that_a_client_has_lost_is_found_by_the_call(client, service, monkeypatch):
    monkeypatch.setattr(service, "thoughts", {"call_1": "I act.", "call_2": "Again."})
    items = [
        text_message("user", "1"),
        text_message("assistant", "I look."),
        call_item("f", "{}"),
        call_item("f", "{}", "call_2"),
        output_item("2"),
        reasoning_item("Known."),
        call_item("f", "{}", "call_2"),
    ]
    told = messages_of(client, service, items)
    assert [message.content for message in told if message.channel == "analysis"] == ["I act.", "Known."]
    assert told[1].content == "I act."


def test_items_that_say_nothing_are_skipped_and_others_refused(client, service):
    nothing = [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}]
    assert messages_of(client, service, nothing) == []
    for lost in ({"type": "mcp_call", "output": "42"}, {"type": "compaction", "encrypted_content": "gA"}):
        status, param, message = refusal(ask(client, input=[lost]))
        assert (status, param) == (400, "input[0].type")
        assert lost["type"] in message


def test_pictures(client, service):
    """From a person they are refused; one that the model looked at itself would end every session."""
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    status, param, message = refusal(ask(client, input=[{"role": "user", "content": [picture]}]))
    assert (status, param) == (400, "input[0].content[0]")
    assert "input_image" in message
    (_, told) = messages_of(client, service, [call_item("view_image", "{}"), output_item([picture])])
    assert "left out" in told.content


def test_a_result_without_a_call(client):
    status, param, message = refusal(ask(client, input=[output_item("x", "call_9")]))
    assert (status, param) == (400, "input")
    assert "call_9" in message


# Tools.


def test_tools_as_the_model_sees_them(client, service):
    service.begin()
    assert client.post("/v1/responses", json=agent_body()).status_code == 200
    tools = service.requests[-1].conversation.tools
    assert [tool.name for tool in tools] == [
        *("exec_command", "write_stdin", "ask_user", "plan", "look"),
        *("multi_agent_v1.spawn_agent", "multi_agent_v1.wait_agent", "multi_agent_v1.close_agent"),
    ]
    assert tools[0].parameters == COMMAND["parameters"]


def test_a_call_comes_back_under_the_names_that_the_client_gave(client, service):
    service.begin(
        Called("call_1", "functions.exec_command", "{}"),
        Called("call_2", "multi_agent_v1.spawn_agent", "{}"),
        Called("call_3", "invented", "{}"),
        stats("tool_calls"),
    )
    output = answer(client, tools=AGENT_TOOLS)["output"]
    assert [(item["name"], item.get("namespace")) for item in output] == [
        ("exec_command", None),
        ("spawn_agent", "multi_agent_v1"),
        ("invented", None),
    ]


def test_a_tool_that_takes_bare_text(client, service, of_openai):
    """It is a function with one string for the model, and comes back as what it is."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tools = [{"type": "custom", "name": "patch", "description": "Patches.", "format": grammar}]
    service.begin(
        Called("call_1", "patch", '{"input": "x\\ny"}'), Called("call_2", "patch", "bare"), stats("tool_calls")
    )
    events = frames(ask(client, stream=True, tools=tools))
    for event in events:
        of_openai["event"].validate_python(event)
    output = events[-1]["response"]["output"]
    assert items_of(events[2:-1]) == output
    assert [(item["type"], item["input"]) for item in output] == [
        ("custom_tool_call", "x\ny"),
        ("custom_tool_call", "bare"),
    ]
    (tool,) = service.requests[-1].conversation.tools
    assert grammar["definition"] in tool.parameters["properties"]["input"]["description"]
    assert service.requests[-1].strict_tools == {"patch"}
    returned = [output[0], {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"}]
    assert messages_of(client, service, returned, tools=tools) == [
        call("patch", '{"input": "x\\ny"}'),
        result("patch", "done"),
    ]


def test_one_call_alone_where_a_client_asks_for_it(client, service):
    service.begin(*SCRIPTS["two calls"])
    output = answer(client, tools=AGENT_TOOLS, parallel_tool_calls=False)["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    assert len(answer(client, tools=AGENT_TOOLS)["output"]) == 3


CHOICES = [
    ("auto", "auto", None, 8),
    ("none", "none", None, 8),
    ("required", "required", None, 8),
    ({"type": "function", "name": "plan"}, "required", "plan", 8),
    (
        {"type": "function", "name": "wait_agent", "namespace": "multi_agent_v1"},
        "required",
        "multi_agent_v1.wait_agent",
        8,
    ),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "plan"}]}, "auto", None, 1),
    (
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "plan"}]},
        "required",
        "plan",
        8,
    ),
]


@pytest.mark.parametrize(("choice", "means", "only", "shown"), CHOICES)
def test_choices_of_tools(client, service, choice, means, only, shown):
    service.begin()
    answer(client, tools=AGENT_TOOLS, tool_choice=choice)
    asked = service.requests[-1]
    assert (asked.tool_choice, asked.only_tool, len(asked.conversation.tools)) == (means, only, shown)


def test_strict_tools(client, service):
    strict = function("f", x="string") | {"strict": True}
    answer(client, tools=[strict, COMMAND, {"type": "namespace", "name": "n", "tools": [strict]}])
    assert service.requests[-1].strict_tools == {"f", "n.f"}


# Other fields.

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
MEANINGS = [
    (
        {"temperature": 0, "top_p": 0.5, "seed": 3},
        lambda asked: asked.sampling.temperature == 0 and asked.sampling.seed == 3,
    ),
    ({"max_output_tokens": 7}, lambda asked: asked.max_tokens == 7),
    ({"prompt_cache_key": "k"}, lambda asked: asked.cache_key == "k"),
    ({"reasoning": {"effort": "none"}}, lambda asked: not asked.reasons),
    (
        {"reasoning": {"effort": "minimal"}},
        lambda asked: asked.conversation.reasoning_effort == "low" and asked.reasons,
    ),
    ({"reasoning": {"effort": "high"}}, lambda asked: asked.conversation.reasoning_effort == "high"),
    (
        {"reasoning": {"summary": "auto"}},
        lambda asked: asked.conversation.reasoning_effort == "medium" and asked.reasons,
    ),
    (
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        lambda asked: asked.conversation.response_schema is None,
    ),
    (
        {"text": {"format": {"type": "json_object"}}},
        lambda asked: asked.conversation.response_schema == {"type": "object"},
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
        lambda asked: asked.conversation.response_schema == SCHEMA,
    ),
    ({"truncation": "auto", "user": "u", "service_tier": "flex", "never_heard_of": 1}, lambda asked: True),
    ({"background": False, "conversation": None, "prompt": None}, lambda asked: True),
]


@pytest.mark.parametrize(("fields", "holds"), MEANINGS)
def test_fields(client, service, of_openai, fields, holds):
    service.begin()
    of_openai["response"].validate_python(answer(client, **fields))
    assert holds(service.requests[-1])


def test_a_response_says_what_was_asked_for(client, service):
    fields = {
        "model": "any-name",
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "tools": [COMMAND, {"type": "web_search"}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_object"}},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "store": False,
    }
    reply = answer(client, **fields)
    assert {name: reply[name] for name in fields} == fields
    assert answer(client)["model"] == service.model_name


REFUSED = [
    ("input", {"input": None}),
    ("background", {"background": True}),
    ("conversation", {"conversation": "conv_1"}),
    ("prompt", {"prompt": {"id": "pmpt_1"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "sometimes"}),
    ("tool_choice.name", {"tool_choice": {"type": "function", "name": "f"}}),
    ("tool_choice.type", {"tool_choice": {"type": "file_search"}}),
    ("reasoning.effort", {"reasoning": {"effort": "extreme"}}),
    ("text.format.type", {"text": {"format": {"type": "xml"}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema"}}}),
    ("max_output_tokens", {"max_output_tokens": 0}),
    ("temperature", {"temperature": 9}),
    ("frequency_penalty", {"frequency_penalty": 1}),
    ("metadata.a", {"metadata": {"a": 1}}),
    ("truncation", {"truncation": "some"}),
    ("tools[0].name", {"tools": [{"type": "function"}]}),
    ("tools[0].name", {"tools": [{"type": "function", "name": "a b"}]}),
    ("tools[0].type", {"tools": [{"name": "f"}]}),
    ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
    ("input[1].content", {"input": [{"role": "user", "content": "x"}, {"role": "user", "content": 3}]}),
    ("input[0]", {"input": ["x"]}),
    ("input[0]", {"input": [{}]}),
    ("input[0].call_id", {"input": [{"type": "function_call_output", "output": "x"}]}),
    ("input[0].id", {"input": [{"type": "item_reference", "id": "msg_0"}]}),
]


@pytest.mark.parametrize(("param", "fields"), REFUSED)
def test_what_is_refused_by_name(client, param, fields):
    status, named, message = refusal(ask(client, **fields))
    assert (status, named) == (400, param)
    assert message.startswith(param.split(".")[0].split("[")[0])


HOSTILE = [
    *(None, True, 0, -1, 1.5, 10**30, -(10**30), "", "x", "\ud800", "\x00<|end|>", "a" * 5000),
    *([], {}, [None], [[]], [{}], {"type": {}}, {"type": "message", "role": []}, {"": ""}),
]


def places(value, path=()):
    """Every place of a value within a request."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in pairs:
        yield from places(each, (*path, name))


def replaced(value, path, by):
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


WHOLE = {
    "model": "m",
    "instructions": "i",
    "previous_response_id": None,
    "input": [
        text_message("user", "x"),
        reasoning_item("x"),
        call_item("f", "{}", namespace="n"),
        output_item([{"type": "input_text", "text": "x"}]),
        {"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "x"},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "f"}]},
        {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ENCRYPTED,
    "metadata": {"a": "b"},
    "stream": False,
    "store": True,
    "background": False,
    "parallel_tool_calls": True,
    "truncation": "auto",
    "temperature": 1,
    "top_p": 1,
    "top_logprobs": 1,
    "max_output_tokens": 5,
    "prompt_cache_key": "k",
}


def over_http(client, service, body):
    response = client.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    return None if response.status_code == 200 else refusal(response)[0]


def read_alone(client, service, body):
    try:
        asked = read_request(Fields(json_object(body)), ResponseStore(), service)
    except RequestError as error:
        return error.status
    assert list(ResponseWriter(asked).begin())
    return None


@pytest.mark.parametrize("sent", [read_alone, pytest.param(over_http, marks=pytest.mark.slow)])
def test_hostile_values_at_every_place(client, service, sent):
    """Each is an answer or a refusal, never an error of the server."""
    service.begin(*said("Yes."))
    replies = [
        sent(client, service, json.dumps(replaced(WHOLE, path, value)).encode())
        for path in places(WHOLE)
        for value in HOSTILE
    ]
    assert set(replies) == {None, 400}
    assert replies.count(400) > 500


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"input": ' + b"[" * 9000 + b"]" * 9000 + b"}"]
)
def test_bodies_that_are_no_request(client, body):
    assert refusal(client.post("/v1/responses", content=body))[0] == 400


# Responses that are kept.


def test_a_response_goes_on_from_another(client, service):
    service.begin(*called("f", '{"x": 1}'))
    first = answer(client, input="One", instructions="Be brief.", tools=[function("f", x="number")])
    service.begin(*said("Two."))
    second = answer(client, input=[output_item("42")], previous_response_id=first["id"], instructions="Be kind.")
    assert second["previous_response_id"] == first["id"]
    third = [Message("developer", "Be kind."), Message("user", "One"), Message("assistant", "I act.", "analysis")]
    third += [call("f", '{"x": 1}'), result("f", "42")]
    assert list(service.requests[-1].conversation.messages) == third
    answer(client, input="Three", previous_response_id=second["id"])
    told = [message.content for message in service.requests[-1].conversation.messages]
    assert told == ["One", "I act.", '{"x": 1}', "42", "I think.", "Two.", "Three"]


def test_a_streamed_response_is_kept_before_its_client_hears_of_its_end(client, service, monkeypatch):
    service.begin(*said("Yes."))
    final = frames(ask(client, stream=True))[-1]["response"]
    assert client.get(f"/v1/responses/{final['id']}").json() == final


def test_responses_that_are_not_kept(client, service):
    service.begin()
    asked_not_to, deleted = answer(client, store=False)["id"], answer(client)["id"]
    assert client.delete(f"/v1/responses/{deleted}").json() == {"id": deleted, "object": "response", "deleted": True}
    for gone in (asked_not_to, deleted, "resp_0"):
        response = ask(client, previous_response_id=gone)
        assert refusal(response)[:2] == (400, "previous_response_id")
        assert response.json()["error"]["code"] == "previous_response_not_found"
        for method, path in (("GET", gone), ("DELETE", gone), ("GET", f"{gone}/input_items")):
            assert refusal(client.request(method, f"/v1/responses/{path}"))[0] == 404


def test_input_items(client, service):
    service.begin(*said("Yes."))
    first = answer(client, input="One")
    second = answer(client, input=[{"role": "user", "content": "Two"}], previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    listed = client.get(path).json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    newest, *_, oldest = listed["data"]
    assert newest["content"] == "Two"
    assert oldest["content"] == [{"type": "input_text", "text": "One"}]
    assert {item["id"] for item in first["output"]} < {item["id"] for item in listed["data"]}
    page = client.get(path, params={"order": "asc", "limit": 1}).json()
    assert (page["data"], page["has_more"]) == ([oldest], True)
    rest = client.get(path, params={"order": "asc", "after": oldest["id"]}).json()
    assert rest["data"] == listed["data"][-2::-1]
    for query in ({"limit": "0"}, {"limit": "9" * 5000}, {"order": "up"}, {"after": "x"}):
        assert refusal(client.get(path, params=query))[:2] == (400, next(iter(query)))


def test_an_item_named_by_its_id(client, service):
    service.begin(*said("Yes."))
    (_, message) = answer(client)["output"]
    assert messages_of(client, service, [{"type": "item_reference", "id": message["id"]}]) == [
        Message("assistant", "Yes.", "final")
    ]


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


def test_openai_asks_for_what_is_kept(openai, service):
    from openai import BadRequestError, NotFoundError

    service.begin(*said("Yes."))
    id_ = openai.responses.create(model="m", input="Hi").id
    assert openai.responses.retrieve(id_).output_text == "Yes."
    (item,) = openai.responses.input_items.list(id_).data
    assert item.content[0].text == "Hi"
    openai.responses.delete(id_)
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(id_)
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="m", input="Hi", previous_response_id=id_)
    assert refused.value.code == "previous_response_not_found"
