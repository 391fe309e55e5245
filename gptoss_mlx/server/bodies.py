"""The body of a request -> a JSON object, within limits of size, depth and numbers, or a RequestError.

How long a client takes to send it is `connections`'s; what the fields mean is each protocol's.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from starlette.requests import Request

from .errors import RequestError

# The longest context is 131,072 tokens: about a megabyte of text, six in JSON's escapes. The rest is for pictures,
# which are refused by name.
MAX_BYTES = 32 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 40  # of an integer: parsing and printing take time with their square
# Commas and opening brackets, in texts too: no context holds so many tokens, and the values between them would take up
# to thirty times the memory that they take as JSON.
MAX_SEPARATORS = 2**20
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # as JSON escapes a half of a pair


async def read_json_body(request: Request) -> dict[str, Any]:
    """The object in the body. Half of a surrogate pair, where a client has cut a text within a character, is replaced:
    no tokenizer takes it. Raises RequestError."""
    return json_object(await read_body(request))


async def read_body(request: Request, max_bytes: int = MAX_BYTES) -> bytes:
    """The body as it is, counted while it arrives. Raises RequestError."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RequestError("a body with a Content-Encoding is not read: send it as it is", status=415)
    too_large = RequestError(f"the body has more than {max_bytes:,} bytes", status=413, code="request_too_large")
    length = request.headers.get("content-length", "")
    if len(length) > len(str(max_bytes)) or int(length or 0) > max_bytes:  # h11 lets only digits pass
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def json_object(data: bytes) -> dict[str, Any]:
    """The object that JSON in UTF-8 holds. Raises RequestError."""
    try:
        value = _parsed(data)
    except RecursionError:
        raise RequestError(f"the body is nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8") from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON that can be read: {error}" if data else "the body is empty") from None
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object")
    return value


def _parsed(data: bytes) -> Any:
    """Raises ValueError, and RecursionError."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_SEPARATORS:
        raise ValueError(f"more than {MAX_SEPARATORS:,} commas and brackets")
    value = json.loads(data.decode(), parse_int=_integer, parse_float=_float, parse_constant=_float)
    if SURROGATE.search(data):
        text = json.dumps(value, ensure_ascii=False)
        value = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    _check_depth(value)
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:MAX_DIGITS]}")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [each for each in level if isinstance(each, dict | list)]
        if not nested:
            return
        level = [child for each in nested for child in (each.values() if isinstance(each, dict) else each)]
    raise RecursionError
