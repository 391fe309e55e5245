"""A service with an answer for each request, and requests as an agent for code makes them."""

import json
from contextlib import aclosing

import httpx

from gptoss_mlx.chat.request import Called
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from server.loopback import ScriptedService, begins, stats


class QueueingService(ScriptedService):
    """Gives the answers that wait, one after another, and the last one again."""

    def __init__(self, *answers):
        super().__init__()
        self._answers = list(answers)

    async def answer(self, request):
        if self._answers:
            self.script = self._answers.pop(0)
        async with aclosing(super().answer(request)) as events:
            async for event in events:
                yield event


def said(text: str) -> list:
    """An answer after a thought, in pieces."""
    middle = len(text) // 2
    return [
        begins(Reasoning, "I "),
        Reasoning("think."),
        begins(Content, text[:middle]),
        Content(text[middle:]),
        stats(),
    ]


def called(name: str, arguments: str, id_: str = "call_1", preamble: str = "") -> list:
    told = [begins(Preamble, preamble)] if preamble else []
    return [begins(Reasoning, "I act."), *told, Called(id_, name, arguments), stats("tool_calls")]


def frames(response: httpx.Response) -> list[dict]:
    """The data of the events, whose names are their types."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


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


def function(name: str, **properties: str) -> dict:
    """A tool as Responses has it; each property with its type."""
    parameters = {
        "type": "object",
        "properties": {
            each: {"type": type_, "description": f"The {each}. " * 12} for each, type_ in properties.items()
        },
        "required": list(properties),
        "additionalProperties": False,
    }
    about = f"Does what {name} says. " * 50
    return {"type": "function", "name": name, "description": about, "strict": False, "parameters": parameters}


COMMAND = function("exec_command", cmd="string", workdir="string", yield_time_ms="number")
SPAWN = function("spawn_agent", message="string")
AGENT_TOOLS = [
    COMMAND,
    *(function(name, session_id="number", chars="string") for name in ("write_stdin", "ask_user", "plan", "look")),
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Helpers that work beside you.",
        "tools": [SPAWN, function("wait_agent", id="string"), function("close_agent", id="string")],
    },
    {"type": "web_search", "external_web_access": False},
]


def text_message(role: str, *texts: str, **more) -> dict:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts], **more}


def agent_body(*later: dict, **changes) -> dict:
    """About 40 kB: what Codex sends, in other words."""
    rules = "\n".join(
        f"{i}. Read a file before you change it, and say in a sentence what you change." for i in range(220)
    )
    return {
        "model": "gpt-oss-20b",
        "stream": True,
        "input": [
            text_message("developer", f"You are an agent for code.\n{rules}"),
            text_message("developer", "Ask nobody: no question is answered.", "Nothing is out of bounds."),
            text_message("user", "<environment_context>\n  <cwd>/home/ann/project</cwd>\n</environment_context>"),
            text_message("user", "create made.txt with hi"),
            *later,
        ],
        "tools": AGENT_TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-ab",
        "client_metadata": {"installation": "0199-cd"},
        **changes,
    }
