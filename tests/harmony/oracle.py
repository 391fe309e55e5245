"""The openai-harmony package, fed with the same chat-completions JSON as `gptoss-mlx harmony render`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Oracle:
    def __init__(self, o200k: Path):
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(o200k)
        from openai_harmony import HarmonyEncodingName, load_harmony_encoding

        self.encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    def ids(self, data: dict[str, Any]) -> list[int]:
        from openai_harmony import Conversation, RenderConversationConfig, Role

        conversation = Conversation.from_messages(messages_of(data))
        # What is to be dropped was dropped by `messages_of`: the package's own rule is not the document's.
        config = RenderConversationConfig(auto_drop_analysis=False)
        return self.encoding.render_conversation_for_completion(conversation, Role.ASSISTANT, config)

    def text(self, data: dict[str, Any]) -> str:
        return self.encoding.decode_utf8(self.ids(data))


def messages_of(data: dict[str, Any]) -> list:
    """Messages of the package. `"stale": true` marks an assistant's reasoning that the document says to drop."""
    from openai_harmony import Author, DeveloperContent, Message, ReasoningEffort, Role, SystemContent, ToolDescription

    system = SystemContent.new().with_reasoning_effort(
        ReasoningEffort(data.get("reasoning_effort", "medium").capitalize())
    )
    if "current_date" in data:
        system = system.with_conversation_start_date(data["current_date"])
    if "knowledge_cutoff" in data:
        system = system.with_knowledge_cutoff(data["knowledge_cutoff"])
    if "model_identity" in data:
        system = system.with_model_identity(data["model_identity"])
    if "browser" in data.get("builtin_tools", ()):
        system = system.with_browser_tool()
    if "python" in data.get("builtin_tools", ()):
        system = system.with_python_tool()
    out = [Message.from_role_and_content(Role.SYSTEM, system)]

    entries = list(data["messages"])
    developer = DeveloperContent.new()
    leading = entries and entries[0]["role"] in ("system", "developer")
    if leading:
        developer = developer.with_instructions(entries.pop(0)["content"])
    if tools := [tool["function"] for tool in data.get("tools", ())]:
        described = [ToolDescription.new(t["name"], t.get("description", ""), t.get("parameters")) for t in tools]
        developer = developer.with_function_tools(described)
    if leading or tools:
        out.append(Message.from_role_and_content(Role.DEVELOPER, developer))

    names = {}
    for entry in entries:
        role = entry["role"]
        if role in ("system", "developer"):
            content = DeveloperContent.new().with_instructions(entry["content"])
            out.append(Message.from_role_and_content(Role.DEVELOPER, content))
        elif role == "user":
            out.append(Message.from_role_and_content(Role.USER, entry["content"]))
        elif role == "tool":
            author = Author.new(Role.TOOL, f"functions.{names[entry['tool_call_id']]}")
            message = Message.from_author_and_content(author, entry["content"])
            out.append(message.with_channel("commentary").with_recipient("assistant"))
        else:
            calls = entry.get("tool_calls", ())
            if "reasoning" in entry and not entry.get("stale"):
                out.append(Message.from_role_and_content(Role.ASSISTANT, entry["reasoning"]).with_channel("analysis"))
            if entry.get("content"):
                channel = "commentary" if calls else "final"
                out.append(Message.from_role_and_content(Role.ASSISTANT, entry["content"]).with_channel(channel))
            for call in calls:
                names[call["id"]] = call["function"]["name"]
                message = Message.from_role_and_content(Role.ASSISTANT, call["function"]["arguments"])
                message = message.with_channel("commentary").with_recipient(f"functions.{call['function']['name']}")
                out.append(message.with_content_type("<|constrain|>json"))
    return out
