"""A server of its own for each file, with a scripted model, and a client of it."""

import logging

import certifi
import httpx
import pytest

from server.loopback import ScriptedService, serving


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory):
    """Clients know one certificate authority: to read all of them takes each client longer than most tests here."""
    end = "-----END CERTIFICATE-----\n"
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    path.write_text(certifi.contents().partition(end)[0] + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="module")
def service():
    return ScriptedService()


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def openai(url):
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def log():
    """The records that the server logs."""
    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("gptoss_mlx")
    handler.emit = records.append
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def of_openai():
    """Checks values by the types of openai's package, which parse strictly here."""
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    return {"event": TypeAdapter(ResponseStreamEvent), "response": TypeAdapter(Response)}
