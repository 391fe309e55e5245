"""Requests to Anthropic's Messages API, read: what they mean, what is refused, and that nothing else goes wrong."""

import json

import pytest

from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.harmony.render import render_text
from gptoss_mlx.server.bodies import json_object
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.fields import Fields
from gptoss_mlx.server.messages_request import answer_request
from server.messaging import ASK, BASIC, SCHEMA, WEATHER


def asked(thoughts=(), **fields):
    """What a request with these fields asks for."""
    return answer_request(Fields(BASIC | fields), Sampling(), dict(thoughts).get)


def test_settings():
    request = asked(temperature=0.5, top_p=0.9, top_k=20, metadata={"user_id": "u1"}, max_tokens=32000)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 20)
    assert (request.cache_key, request.max_tokens) == ("u1", 32000)
    assert asked().sampling == Sampling()
    schema = {"type": "json_schema", "schema": SCHEMA}
    assert asked(output_config={"format": schema}).conversation.response_schema == SCHEMA
    assert asked(output_format=schema).conversation.response_schema == SCHEMA


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, "medium"),
        *(({"output_config": {"effort": name}}, name) for name in ("low", "medium", "high")),
        *(({"output_config": {"effort": name}}, "high") for name in ("xhigh", "max")),
        *(
            ({"thinking": {"type": "enabled", "budget_tokens": budget}}, effort)
            for budget, effort in ((1024, "low"), (10_000, "medium"), (32_000, "high"))
        ),
    ],
)
def test_effort(fields, effort):
    assert asked(**fields).conversation.reasoning_effort == effort


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None)),
        ({"type": "any"}, ("required", None)),
        ({"type": "tool", "name": "weather"}, ("required", "weather")),
        ({"type": "none"}, ("none", None)),
    ],
)
def test_tool_choice(choice, expected):
    request = asked(tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.only_tool) == expected


def test_tools():
    request = asked(
        tools=[
            WEATHER | {"type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            {"name": "now", "input_schema": {"type": "object"}},
        ],
    )
    assert [tool.name for tool in request.conversation.tools] == ["weather", "now"]
    assert request.strict_tools == {"weather"}


def test_what_is_said():
    def text(text):
        return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}

    def said(*messages, **fields):
        turns = [{"role": role, "content": content} for role, content in messages]
        return [
            (message.role, message.channel, message.content)
            for message in asked(messages=turns, **fields).conversation.messages
        ]

    assert said(("user", [text("a"), text("b")]), system=[text("Be"), text("brief.")]) == [
        ("developer", None, "Be\n\nbrief."),
        ("user", None, "a\n\nb"),
    ]
    assert said(("system", "s"), ("user", "u"), ("developer", [text("d")]), ("user", ""), ("system", "t")) == [
        ("developer", None, "s"),
        ("user", None, "u"),
        ("developer", None, "d"),
        ("user", None, ""),
        ("developer", None, "t"),
    ]
    thinking = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    redacted = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    assert said(("user", "u"), ("assistant", [redacted, thinking, text("one"), text("two")]), ("user", "v")) == [
        ("user", None, "u"),
        ("assistant", "analysis", "hm"),
        ("assistant", "commentary", "one"),
        ("assistant", "final", "two"),
        ("user", None, "v"),
    ]
    use, result = {"type": "tool_use", "id": "1", "name": "f", "input": {}}, {"type": "tool_result", "tool_use_id": "1"}
    assert said(
        ("user", "u"), ("assistant", "one"), ("assistant", [use]), ("user", [text("x"), result, text("y")])
    ) == [
        ("user", None, "u"),
        ("assistant", "commentary", "one"),
        ("assistant", "commentary", "{}"),
        ("user", None, "x"),
        ("functions.f", "commentary", ""),
        ("user", None, "y"),
    ]


def test_reasoning_that_a_client_does_not_return_is_remembered():
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "rain"}

    def channels(*before):
        turns = [{"role": "assistant", "content": [*before, use]}, {"role": "user", "content": [result]}]
        return [
            (each.channel, each.content)
            for each in asked({"1": "I ask."}, messages=ASK + turns).conversation.messages[1:-1]
        ]

    assert channels() == [("analysis", "I ask."), ("commentary", "{}")]
    assert channels({"type": "thinking", "thinking": "Mine.", "signature": ""})[0] == ("analysis", "Mine.")
    assert channels({"type": "thinking", "thinking": "", "signature": ""})[0] == ("analysis", "I ask.")


def test_tools_that_are_loaded_later_leave_the_beginning_as_it_is():
    def conversation(*later, found=()):
        tools = [WEATHER, {"name": "find", "input_schema": SCHEMA}]
        tools += [
            {"name": name, "description": "One.\nTwo.", "input_schema": SCHEMA, "defer_loading": True} for name in found
        ]
        search = {"type": "tool_use", "id": "1", "name": "find", "input": {"place": "map"}}
        references = [{"type": "tool_reference", "tool_name": name} for name in found]
        turns = [
            {"role": "assistant", "content": [search]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": references}]},
        ]
        return asked(tools=tools, messages=[*ASK, *(turns if found else ()), *later]).conversation

    before, after = conversation(), conversation(found=["map", "mail"])
    assert before.tools == after.tools
    assert before.messages == after.messages[:1]
    shown = "// One.\n// Two.\ntype map = (_: {\nplace: string,\n}) => any;"
    assert after.messages[-1].content == "\n\n".join([shown, shown.replace("map", "mail")])
    definition = {"type": "tool_definition", "definition": {"name": "map", "input_schema": {}}}
    added = {"type": "tool_addition", "tool": definition}
    removed = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "map"}}
    said = conversation({"role": "system", "content": [added, removed]}).messages[-1]
    assert said.content == (
        "This tool is there from now on:\n\ntype map = () => any;\n\nThe tool map is there no longer."
    )
    searched = asked(
        tools=[
            {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"},
            WEATHER | {"defer_loading": True},
        ],
    )
    assert [tool.name for tool in searched.conversation.tools] == ["weather"]


def test_what_the_system_says_for_one_turn():
    passing = {"role": "system", "content": "Now.", "clear_at": "next_user_message"}
    calm = {"role": "system", "content": [], "output_config": {"effort": "low"}}
    conversation = asked(messages=[passing, *ASK, passing, calm], output_config={"effort": "high"}).conversation
    assert [message.content for message in conversation.messages] == [ASK[0]["content"], "Now."]
    assert conversation.reasoning_effort == "low"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [*ASK, {"role": "assistant", "content": "The"}]}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}, *ASK]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.name"),
        ({"tools": [{"name": "a b"}]}, "tools.0.name"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"thinking": {"type": "loud"}}, "thinking.type"),
        ({"output_config": {"effort": "some"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_refusals_name_the_field(fields, place):
    with pytest.raises(RequestError) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (400, place)
    assert caught.value.message.startswith(place + " ")


HOSTILE = [
    None,
    True,
    0,
    -1,
    1e300,
    10**30,
    "",
    "x",
    "\ud800",
    "\0<|end|>",
    [],
    [None],
    [[]],
    {},
    {"": {}},
    {"type": []},
]


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def status_of(body):
    """The status of the reply, as far as it depends on the request. Anything but a RequestError is a fault."""
    try:
        fields = Fields(json_object(json.dumps(body).encode()))
        render_text(answer_request(fields, Sampling(), {}.get).conversation).encode()
    except RequestError as error:
        return error.status
    return 200


def test_wrong_values_everywhere_are_refused_or_ignored():
    turns = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "text", "text": "look"},
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"place": "B"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "content": [{"type": "text", "text": "x"}, {"type": "tool_reference", "tool_name": "weather"}],
                    "is_error": False,
                }
            ],
        },
        {
            "role": "system",
            "content": [{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "weather"}}],
            "clear_at": "never",
            "output_config": {"effort": "low"},
        },
    ]
    body = BASIC | {
        "messages": ASK + turns,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "tools": [WEATHER | {"strict": True, "type": "custom", "defer_loading": False}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["x"],
        "stream": False,
        "temperature": 1,
        "top_p": 1,
        "top_k": 1,
    }
    paths = list(places(body))
    assert len(paths) > 80

    statuses = {status_of(replaced(body, path, value)) for path in paths for value in HOSTILE}
    assert statuses == {200, 400}
    assert status_of(body) == 200
