"""The application: the routes of all protocols, what clients ask beside answers, and errors as replies.

Who may ask is `security`'s, connections are `connections`'s.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..chat.turn import OnPrefill
from ..errors import GptOssError
from . import chat_completions, completions, messages, page, responses
from .conversations import Conversations
from .errors import RequestError, error_response
from .messages import model_info, models_page
from .metrics import Metrics
from .observing import ObservedService, RequestLog
from .security import Access, Guard
from .service import Service

PROTOCOLS = (chat_completions, completions, responses, messages, page)
# Codex asks for the version of Ollama, and refuses one that is older than its Responses endpoint.
OLLAMA_VERSION = "0.14.2"
ANTHROPIC_VERSION = "anthropic-version"  # a header that all clients of Anthropic's API send
ON_LOOPBACK = Access()


def make_app(
    service: Service,
    access: Access = ON_LOOPBACK,
    on_prefill: OnPrefill | None = None,
    conversations: Conversations | None = None,
) -> Starlette:
    """The application of one model; `app.state.service` is for the protocols, `app.state.conversations` for the page.
    `on_prefill` gets the progress of whatever prompt is being read."""
    metrics = Metrics()
    app = Starlette(
        routes=[*(route for protocol in PROTOCOLS for route in protocol.routes), *ROUTES],
        middleware=[Middleware(RequestLog, metrics), Middleware(Guard, access)],
        exception_handlers={
            RequestError: _refused,
            GptOssError: _failed,
            HTTPException: _no_such_route,
            ClientDisconnect: _gone,
        },
    )
    app.router.redirect_slashes = False  # the address of a redirect would be the client's own word
    app.state.service, app.state.metrics = ObservedService(service, metrics, on_prefill), metrics
    app.state.conversations = conversations
    return app


async def _models(request: Request) -> Response:
    """The list in OpenAI's form, or Anthropic's for its clients."""
    if ANTHROPIC_VERSION in request.headers:
        return JSONResponse(models_page(request.app.state.service))
    return JSONResponse({"object": "list", "data": [_model_object(request)]})


async def _model(request: Request) -> Response:
    name, known = request.path_params["name"], request.app.state.service.model_name
    if name != known:
        raise RequestError(
            f"there is no model {name!r} here, only {known}", status=404, code="model_not_found", param="model"
        )
    if ANTHROPIC_VERSION in request.headers:
        return JSONResponse(model_info(request.app.state.service))
    return JSONResponse(_model_object(request))


def _model_object(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "gptoss-mlx",
        "context_length": service.context,
    }


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok", "model": request.app.state.service.model_name})


async def _metrics(request: Request) -> Response:
    pool, metrics = request.app.state.service.pool, request.app.state.metrics
    return PlainTextResponse(metrics.text(pool.nbytes, pool.resting), media_type="text/plain; version=0.0.4")


async def _version(request: Request) -> Response:
    return JSONResponse({"version": OLLAMA_VERSION})


async def _tags(request: Request) -> Response:
    name = request.app.state.service.model_name
    return JSONResponse({"models": [{"name": name, "model": name}]})


ROUTES = (
    Route("/v1/models", _models),
    Route("/v1/models/{name:path}", _model),
    Route("/health", _health),
    Route("/metrics", _metrics),
    Route("/api/version", _version),
    Route("/api/tags", _tags),
)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, request.url.path)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(RequestError(str(error), status=500, kind="server_error"), request.url.path)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    message = {404: f"there is no {path} here", 405: f"{path} does not take {method}"}.get(error.status_code)
    refusal = RequestError(message or error.detail, status=error.status_code)
    return error_response(refusal, path, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=400)
