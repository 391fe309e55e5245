"""The page at `/`, and what it asks: conversations, turns, and what the model is.

Knows HTTP. The page itself is in `static`, read once; no part of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..chat.attached import MAX_FILE, file_text, with_files
from ..chat.session import EFFORTS
from ..chat.transcript import Transcript
from ..chat.visible import with_all_visible
from ..errors import GptOssError, printable
from ..harmony.messages import FUNCTIONS, Message
from ..harmony.parse import Reasoning, is_call, kind_of
from ..memory.system import size_text
from .bodies import read_json_body
from .conversations import Conversations, TurnRequest
from .errors import RequestError
from .fields import Fields
from .live_turn import MAX_OUTPUT
from .markup import as_html
from .sse import HEADERS, frame

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
STYLES = (STATIC / "page.css").read_text()
# The styles are in the page itself, so that it is painted before anything else is asked for.
PAGE = (STATIC / "index.html").read_text().replace("<style></style>", f"<style>{STYLES}</style>")
STYLES_HASH = base64.b64encode(hashlib.sha256(STYLES.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'sha256-{STYLES_HASH}'; img-src 'self'; connect-src 'self';"
    " manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types page"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
SHOWN = 100  # messages of a conversation at once
MAX_FILES = 20
ACTIONS = ("ask", "retry", "resume")


def _conversations(request: Request) -> Conversations:
    conversations = getattr(request.app.state, "conversations", None)
    if conversations is None:
        raise RequestError("this server keeps no conversations", status=404, code="not_found")
    return conversations


async def _about(request: Request) -> Response:
    service = _conversations(request).service
    plan, sampling = service.model.plan, service.sampling
    rows = (
        [[row.name, size_text(row.bytes), "mapped" if row.mapped else "anonymous"] for row in plan.rows] if plan else []
    )
    return JSONResponse(
        {
            "model": service.model_name,
            "context": service.context,
            "version": version("gptoss-mlx"),
            "efforts": EFFORTS,
            "sampling": {"temperature": sampling.temperature, "top_p": sampling.top_p},
            "plan": rows,
            "total": size_text(plan.total) if plan else None,
            "memory": size_text(plan.device.memory) if plan else None,
        }
    )


async def _list(request: Request) -> Response:
    conversations = _conversations(request)
    listed = await _in_thread(conversations.names)
    return JSONResponse([each | {"running": conversations.running(each["name"]) is not None} for each in listed])


async def _open(request: Request) -> Response:
    """The last messages of a conversation, or the last before message `before`, and the turn that runs in it."""
    conversations, name = _conversations(request), request.path_params["name"]
    running = conversations.running(name)
    before = _query_number(request, "before")
    opened = await _in_thread(lambda: _shown(conversations.transcript(name), before, running is not None))
    return JSONResponse(opened | {"name": name, "turn": running and running.id})


def _shown(transcript: Transcript, before: int | None, is_running: bool) -> dict[str, Any]:
    """While a turn runs, its own messages are shown by it."""
    messages = transcript.messages
    if is_running and transcript.turns:
        last = max(index for index, message in enumerate(messages) if message.role == "user")
        messages = messages[: last + 1]
    end = len(messages) if before is None else min(before, len(messages))
    first = max(end - SHOWN, 0)
    return {
        "instructions": transcript.instructions,
        "reasoning_effort": transcript.reasoning_effort,
        "unfinished": transcript.unfinished,
        "first": first,
        "messages": [_message(index, messages[index]) for index in range(first, end)],
    }


def _message(index: int, message: Message) -> dict[str, Any]:
    if message.role == "user":
        return {"at": index, "kind": "question", "text": message.content}
    if is_call(message):
        name = (message.recipient or "").removeprefix(FUNCTIONS)
        return {"at": index, "kind": "call", "name": with_all_visible(name), "text": with_all_visible(message.content)}
    if message.role != "assistant":
        return {"at": index, "kind": "result", "text": with_all_visible(message.content[:MAX_OUTPUT])}
    kind = "reasoning" if kind_of(message) is Reasoning else "answer"
    return {"at": index, "kind": kind, "html": as_html(message.content), "source": message.content}


async def _rename(request: Request) -> Response:
    new = Fields(await read_json_body(request)).text("name") or ""
    await _in_thread(lambda: _conversations(request).rename(request.path_params["name"], new))
    return JSONResponse({"name": new})


async def _delete(request: Request) -> Response:
    await _in_thread(lambda: _conversations(request).delete(request.path_params["name"]))
    return JSONResponse({})


async def _undo(request: Request) -> Response:
    return JSONResponse({"text": await _in_thread(lambda: _conversations(request).undo(request.path_params["name"]))})


async def _export(request: Request) -> Response:
    transcript = await _in_thread(lambda: _conversations(request).transcript(request.path_params["name"]))
    if request.query_params.get("format") == "json":
        return Response(transcript.as_json(), media_type="application/json", headers=PAGE_HEADERS)
    return Response(transcript.as_markdown(), media_type="text/markdown; charset=utf-8", headers=PAGE_HEADERS)


async def _begin(request: Request) -> Response:
    conversations = _conversations(request)
    wanted = _turn_request(Fields(await read_json_body(request)), conversations)
    turn = await conversations.begin(wanted, request.app.state.service)
    return JSONResponse({"turn": turn.id})


def _turn_request(fields: Fields, conversations: Conversations) -> TurnRequest:
    action, name, settings = fields.choice("action", ACTIONS) or "ask", fields.text("name"), fields.object("settings")
    text = with_files(fields.text("text") or "", _files(fields))
    if action == "ask" and not text.strip():
        raise fields.wrong("text", "is empty: ask something")
    if action != "ask" and name is None:
        raise fields.wrong("name", f"is missing: a conversation to {action}")
    schema = settings.object("schema") if settings.has("schema") else None
    return TurnRequest(
        action=action,
        name=name,
        text=text,
        keep=fields.integer("keep"),
        sampling=settings.sampling(conversations.service.sampling),
        reasoning_effort=settings.choice("reasoning_effort", EFFORTS),
        max_tokens=settings.integer("max_tokens", 1),
        instructions=settings.text("instructions"),
        response_schema=schema and dict(schema.data),
    )


def _files(fields: Fields) -> dict[str, str]:
    files: dict[str, str] = {}
    given = fields.list("files")
    if len(given) > MAX_FILES:
        raise fields.wrong("files", f"are {len(given)}, not at most {MAX_FILES}")
    for index, each in enumerate(given):
        if not isinstance(each, dict):
            raise fields.wrong(f"files[{index}]", "is not a JSON object")
        file = Fields(each, f"files[{index}].")
        name, data = printable(file.text("name") or "file"), (file.text("text") or "").encode()
        if len(data) > MAX_FILE:
            raise file.wrong("text", f"has {len(data):,} bytes, not at most {MAX_FILE:,}")
        try:
            files[name] = file_text(name, data)
        except GptOssError as error:
            raise RequestError(str(error), param=f"{file.place}text") from None
    return files


async def _events(request: Request) -> Response:
    """The pieces of a turn, as server-sent events whose ids are numbers of changes: a page that lost its connection
    names the last one that it saw."""
    turn = _conversations(request).turn(request.path_params["turn"])
    since = _number(request.headers.get("last-event-id", "0"), "Last-Event-ID")

    async def frames() -> AsyncIterator[bytes]:
        async for seq, pieces in turn.updates(since):
            yield f"id: {seq}\n".encode() + frame(pieces) if pieces else b": waiting\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream", headers=HEADERS)


async def _stop(request: Request) -> Response:
    await _conversations(request).turn(request.path_params["turn"]).stop()
    return JSONResponse({})


async def _approve(request: Request) -> Response:
    turn = _conversations(request).turn(request.path_params["turn"])
    answer = Fields(await read_json_body(request)).choice("answer", ("yes", "always", "no")) or "no"
    if turn.approval is None or turn.approval.done():
        raise RequestError("no call waits for an answer", status=409, code="not_asked")
    turn.answered()
    turn.approval.set_result(answer)
    return JSONResponse({})


async def _in_thread(function: Any) -> Any:
    """What the function returns, of a thread for files. Raises RequestError."""
    try:
        return await asyncio.to_thread(function)
    except RequestError:
        raise
    except GptOssError as error:
        raise RequestError(str(error)) from None


def _query_number(request: Request, name: str) -> int | None:
    value = request.query_params.get(name)
    return None if value is None else _number(value, name)


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RequestError(f"{name} is not a number", param=name)
    return int(text)


def _fixed(path: str, content: bytes, media_type: str) -> Route:
    response = Response(content, media_type=media_type, headers=PAGE_HEADERS)

    async def serve(request: Request) -> Response:
        return response

    return Route(path, serve)


def _static_files() -> list[Route]:
    found = [path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES]
    return [_fixed(f"/static/{path.name}", path.read_bytes(), TYPES[path.suffix]) for path in found]


ASKED = (
    Route("/page/about", _about),
    Route("/page/conversations", _list),
    Route("/page/conversations/{name}", _open, methods=["GET"]),
    Route("/page/conversations/{name}", _delete, methods=["DELETE"]),
    Route("/page/conversations/{name}/rename", _rename, methods=["POST"]),
    Route("/page/conversations/{name}/undo", _undo, methods=["POST"]),
    Route("/page/conversations/{name}/export", _export),
    Route("/page/turns", _begin, methods=["POST"]),
    Route("/page/turns/{turn}", _events),
    Route("/page/turns/{turn}/stop", _stop, methods=["POST"]),
    Route("/page/turns/{turn}/approve", _approve, methods=["POST"]),
)
routes = [_fixed("/", PAGE.encode(), "text/html; charset=utf-8"), *_static_files(), *ASKED]
