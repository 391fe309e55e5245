"""What clients ask beside answers, errors as replies, and what is counted and logged of requests."""

import json

import httpx
import pytest

from gptoss_mlx import GptOssError
from gptoss_mlx.chat.request import AnswerStats
from gptoss_mlx.chat.turn import Prefill
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.metrics import Histogram

PATH = "/v1/chat/completions"
SECRET = "my locker code is 4711"
QUESTION = {"messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def ask(service):
    """Send requests to the application, without a socket."""
    import asyncio

    service.begin()
    progress = []
    app = make_app(service, on_prefill=lambda done, total: progress.append((done, total)))

    def ask(method, path, **options):
        async def send():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    ask.progress = progress
    return ask


def test_the_model_as_openai_lists_it(ask, service):
    (model,) = ask("GET", "/v1/models?limit=1").json()["data"]
    assert model["id"] == service.model_name
    assert ask("GET", f"/v1/models/{service.model_name}").json() == model
    unknown = ask("GET", "/v1/models/openai/gpt-4o")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_what_codex_asks_of_ollama_and_lm_studio(ask, service):
    assert [int(part) for part in ask("GET", "/api/version").json()["version"].split(".")] >= [0, 13, 4]
    assert [model["name"] for model in ask("GET", "/api/tags").json()["models"]] == [service.model_name]


def test_health(ask, service):
    assert ask("GET", "/health").json() == {"status": "ok", "model": service.model_name}
    assert ask("HEAD", "/health").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/chat", "/v1/chat/completions/", "/v1/embeddings", "/v1/audio/speech", "/a%0ab"]
)
def test_unknown_paths(ask, path):
    response = ask("POST", path, json={})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_wrong_methods(ask):
    response = ask("GET", PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert ask("PUT", "/v1/messages").json()["error"]["type"] == "invalid_request_error"
    assert ask("BREW", "/health").status_code == 405


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RequestError("too long", code="context_length_exceeded"), 400, "invalid_request_error"),
        (GptOssError("out of memory"), 500, "server_error"),
    ],
)
def test_errors_of_the_service(ask, service, error, status, kind):
    service.begin(error)
    response = ask("POST", PATH, json=QUESTION)
    assert response.status_code == status
    assert response.json()["error"] == {
        "message": str(error),
        "type": kind,
        "param": None,
        "code": getattr(error, "code", None),
    }


@pytest.mark.parametrize(("path", "kind"), [(PATH, "server_error"), ("/v1/messages", "api_error")])
def test_an_error_that_nobody_expected(ask, service, log, path, kind):
    service.begin(ZeroDivisionError(SECRET))
    response = ask("POST", path, json=QUESTION | {"max_tokens": 5})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == kind
    assert SECRET not in response.text
    assert any(record.exc_info for record in log)


def test_what_is_counted_and_logged(ask, service, log):
    stats = AnswerStats("stop", 100, 60, 3, 1)
    service.begin(Prefill(0, 40), Prefill(40, 40), Content("Hel"), Content("lo."), stats)
    for stream in (False, True):
        assert ask("POST", PATH, json=QUESTION | {"stream": stream}).status_code == 200
    assert ask("POST", PATH, json={}).status_code == 400
    assert ask.progress == [(0, 40), (40, 40)] * 2
    text = ask("GET", "/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples[f'gptoss_requests_total{{path="{PATH}",status="200"}}'] == "2"
    assert samples[f'gptoss_requests_total{{path="{PATH}",status="400"}}'] == "1"
    counted = {kind: samples[f'gptoss_tokens_total{{kind="{kind}"}}'] for kind in ("prompt", "cached", "sampled")}
    assert counted == {"prompt": "200", "cached": "120", "sampled": "6"}
    assert samples["gptoss_first_token_seconds_count"] == "2"
    assert (samples["gptoss_answers_waiting"], samples["gptoss_answers_running"]) == ("0", "0")
    assert int(samples['gptoss_memory_bytes{kind="anonymous"}']) > 2**20
    assert samples['gptoss_memory_bytes{kind="caches"}'] == "12345"
    assert samples["gptoss_conversations_resting"] == "3"
    messages = [record.getMessage() for record in log]
    lines = [line for line in messages if line.startswith("POST")]
    assert len(lines) == 3
    assert lines[0].startswith(f"POST {PATH} 200, 100 tokens read (60 cached), 3 written")
    assert lines[2] == f"POST {PATH} 400"
    assert not any("4711" in line or "Hel" in line for line in messages)


def test_a_path_is_logged_in_one_short_line(ask, log):
    ask("GET", "/%0aGET%20/%1b[31m" + "a" * 500 + "?key=secret")
    (line,) = [line for record in log if (line := record.getMessage()).startswith("GET")]
    assert line.isprintable()
    assert len(line) < 120
    assert "secret" not in line


def test_a_histogram():
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 9):
        histogram.add(value)
    assert dict(histogram.samples()) == {
        '_bucket{le="1"}': 2,
        '_bucket{le="2"}': 3,
        '_bucket{le="+Inf"}': 4,
        "_sum": 12,
        "_count": 4,
    }


def test_openai_reads_the_list(openai, service):
    assert [model.id for model in openai.models.list()] == [service.model_name]


def test_replies_are_json(ask):
    for path in ("/health", "/none", "/v1/models"):
        assert json.loads(ask("GET", path).content)
