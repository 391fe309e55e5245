"""OpenAI's Responses API: responses, streamed or not, and those that are kept for their clients.

A request is read by `response_request`, its response is written by `response_events`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .bodies import read_json_body
from .errors import RequestError
from .fields import Fields, shortened
from .response_events import ResponseWriter
from .response_request import new_id, read_request
from .response_store import ResponseStore, StoredResponse
from .sse import EventStream, all_events

DEFAULT_PAGE = 20


async def _create(request: Request) -> Response:
    store = _store(request)
    asked = read_request(Fields(await read_json_body(request)), store, request.app.state.service)

    def keep(ended: dict[str, Any]) -> None:
        items = [item if item.get("id") else {"type": "message"} | item | {"id": new_id("msg")} for item in asked.items]
        stored = StoredResponse(msgspec.json.encode(ended), json.dumps(items).encode(), ended["previous_response_id"])
        store.add(ended["id"], stored)

    writer = ResponseWriter(asked, keep if asked.response["store"] else None)
    events = request.app.state.service.answer(asked.request)
    if asked.stream:
        return EventStream(events, writer)
    for event in await all_events(request, events):
        for _ in writer.translate(event):
            pass
    return _json(msgspec.json.encode(asked.response))


async def _retrieve(request: Request) -> Response:
    if request.query_params.get("stream") == "true":
        raise RequestError("stream is not supported for a response that has ended", param="stream")
    id_ = request.path_params["id"]
    if (stored := _store(request).get(id_)) is None:
        raise _not_found(id_)
    return _json(stored.response)


async def _delete(request: Request) -> Response:
    id_ = request.path_params["id"]
    if not _store(request).delete(id_):
        raise _not_found(id_)
    return _json(msgspec.json.encode({"id": id_, "object": "response", "deleted": True}))


async def _input_items(request: Request) -> Response:
    """The newest first, unless the order is "asc"."""
    id_ = request.path_params["id"]
    if not (chain := _store(request).chain(id_)):
        raise _not_found(id_)
    query = Fields(request.query_params)
    order, limit, after = query.choice("order", ("asc", "desc")), query.text("limit"), query.text("after")
    if limit is not None and not re.fullmatch(r"[1-9][0-9]?|100", limit):
        raise query.wrong("limit", f"is {shortened(limit)}, not from 1 to 100")
    items = [item for stored in chain[:-1] for item in stored.items()] + json.loads(chain[-1].input)
    if order != "asc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise query.wrong("after", "is none of its items")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit or DEFAULT_PAGE)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return _json(json.dumps({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)}).encode())


routes = [
    Route("/v1/responses", _create, methods=["POST"]),
    Route("/v1/responses/{id}", _retrieve, methods=["GET"]),
    Route("/v1/responses/{id}", _delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/input_items", _input_items, methods=["GET"]),
]


def _store(request: Request) -> ResponseStore:
    """The one of the application."""
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    return state.responses


def _not_found(id_: str) -> RequestError:
    return RequestError(
        f"there is no response {shortened(id_)}: they are kept in memory, while there is room", status=404
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
