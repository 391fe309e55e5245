"""What the items and tools of a request for a response are to the model, and what its calls are to a client."""

import pytest

from gptoss_mlx.chat.request import Called
from gptoss_mlx.harmony.messages import Message, call, result
from server.loopback import refusal, stats
from server.responding import (
    AGENT_TOOLS,
    COMMAND,
    agent_body,
    answer,
    ask,
    call_item,
    called,
    frames,
    function,
    items_of,
    messages_of,
    output_item,
    reasoning_item,
    said,
    text_message,
)


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
    (item, _) = answer(client, include=["reasoning.encrypted_content"])["output"]
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
    service.begin(*called("plan", "{}")[:-1], Called("call_2", "look", "{}"), stats("tool_calls"))
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
