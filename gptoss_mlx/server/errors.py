"""What is wrong with a request, as HTTP and its clients say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ..errors import GptOssError

INVALID = "invalid_request_error"
ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_KINDS = {
    400: INVALID,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class RequestError(GptOssError):
    """A request that is refused. Each protocol writes it in its own form."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = INVALID, code: str | None = None, param: str | None = None
    ):
        """`param` names the field that is wrong; `kind` and `code` are OpenAI's `type` and `code`."""
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.param = message, status, kind, code, param


def error_object(error: GptOssError) -> dict[str, Any]:
    """OpenAI's, in a reply or in a stream that has begun; an error that is no request's fault is the server's."""
    if not isinstance(error, RequestError):
        error = RequestError(str(error), status=500, kind="server_error")
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: RequestError, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The reply to a request that is refused, in the form of the protocol that the path belongs to."""
    if path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/"):
        body = {"type": "error", "error": anthropic_error(error)}
    else:
        body = error_object(error)
    return JSONResponse(body, error.status, headers)


def anthropic_error(error: RequestError) -> dict[str, str]:
    """What Anthropic's API says of an error, in replies and in streams."""
    kind = ANTHROPIC_KINDS.get(error.status, INVALID if error.status < 500 else "api_error")
    return {"type": kind, "message": error.message}
