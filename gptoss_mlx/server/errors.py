"""What is wrong with a request, as HTTP and its clients say it."""

from __future__ import annotations

from ..errors import GptOssError

INVALID = "invalid_request_error"


class RequestError(GptOssError):
    """A request that is refused. Each protocol writes it in its own form."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = INVALID, code: str | None = None, param: str | None = None
    ):
        """`param` names the field that is wrong; `kind` and `code` are OpenAI's `type` and `code`."""
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.param = message, status, kind, code, param
