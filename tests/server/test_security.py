"""Who may ask: hosts, origins, keys, heads of requests; in the real application, with and without a key."""

import asyncio
import hmac
import stat

import httpx
import pytest

from gptoss_mlx import GptOssError
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.bodies import MAX_DEPTH, MAX_SEPARATORS, json_object
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.security import MAX_HEADERS, Access, own_key, parse_origin, read_key
from server.loopback import ScriptedService

KEY = "a-key-of-this-test-0123456789"
LOCAL = Access()
KEYED = Access(key=KEY)
NETWORK = Access(key=KEY, on_network=True, names=frozenset({"box", "box.local"}))
OTHER = "https://chat.example.org"
ALLOWING = Access(origins=frozenset({OTHER}))


def ask(access, method="GET", path="/v1/models", *, address="http://127.0.0.1:8080", **options):
    """The response of the application; `headers` may be a list, with a name several times."""

    async def send():
        transport = httpx.ASGITransport(make_app(ScriptedService(), access))
        async with httpx.AsyncClient(transport=transport, base_url=address) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def error_of(response):
    return response.json()["error"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost:9000", "LocalHost", "localhost.", "[::1]:8080", "[::1]", "127.8.8.8:1"],
)
def test_names_of_this_machine(host):
    assert ask(LOCAL, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "evil.example#localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:8080",
        "2130706433",
        "0x7f.1",
        "127.1",
        "192.168.1.7:8080",
        "0.0.0.0:8080",
        "[::1",
        "::1",
        "[::ffff:192.168.1.7]",
        "localhost:8080:8080",
        "localhost:",
        "localhost, evil.example",
        "localhost ",
        "localhost..",
        "",
        "[::1]evil",
        "löcalhost".encode().decode("latin-1"),
    ],
)
def test_a_name_that_leads_here_by_dns_rebinding(host):
    response = ask(LOCAL, headers=[("host", host.encode("latin-1"))])
    assert response.status_code in (400, 403)
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("headers", [[], [("host", "localhost"), ("host", "evil.example")]])
def test_one_host_header(headers):
    async def call():
        scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b""}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers], "scheme": "http"}
        sent = []

        async def send(message):
            sent.append(message)

        await make_app(ScriptedService(), LOCAL)(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(call()) == 400


def test_a_network_has_addresses_and_names():
    bearer = {"authorization": f"Bearer {KEY}"}
    for host, status in {"192.168.1.7:8080": 200, "BOX.local": 200, "[fe80::1]": 200, "evil.example": 403}.items():
        assert ask(NETWORK, headers=bearer | {"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost", "localhost:80"),
        ("HTTP://LOCALHOST:80", "localhost"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_page_of_this_server(origin, host):
    response = ask(LOCAL, headers={"host": host, "origin": origin})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "*",
        OTHER,
        "http://localhost:3000",
        "https://127.0.0.1:8080",
        "http://127.0.0.1:8080.evil.example",
        "http://127.0.0.1:8080@evil.example",
        "http://evil.example/http://127.0.0.1:8080",
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8080 ",
        "file://",
        "chrome-extension://abcdefgh",
        "http://127.0.0.1:8080, http://evil.example",
    ],
)
def test_pages_of_others(origin):
    response = ask(LOCAL, "POST", "/v1/chat/completions", headers={"origin": origin}, json={})
    assert response.status_code == 403
    assert error_of(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_two_origins():
    headers = [("origin", OTHER), ("origin", "http://127.0.0.1:8080")]
    assert ask(ALLOWING, headers=headers).status_code == 403


def test_a_page_that_is_allowed():
    response = ask(ALLOWING, headers={"origin": OTHER})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == OTHER
    assert response.headers["vary"] == "origin"
    for near in (OTHER + ".evil.example", OTHER.replace("https", "http"), OTHER + ":8443", "https://example.org"):
        assert ask(ALLOWING, headers={"origin": near}).status_code == 403


def test_what_an_allowed_page_may_send():
    asked = {"origin": OTHER, "access-control-request-method": "POST"}
    names = "authorization, content-type, x-stainless-os"
    response = ask(
        Access(key=KEY, origins=frozenset({OTHER})),
        "OPTIONS",
        "/v1/chat/completions",
        headers=asked | {"access-control-request-headers": names},
    )
    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == names
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in response.headers
    strange = ask(ALLOWING, "OPTIONS", headers=asked | {"access-control-request-headers": "a\x7fb; c"})
    assert "access-control-allow-headers" not in strange.headers
    assert ask(LOCAL, "OPTIONS", headers=asked).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY} "}, {"x-api-key": KEY}],
)
def test_the_key(headers):
    assert ask(KEYED, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": f"Bearer {KEY} {KEY}"},
        {"x-api-key": ""},
        {"x-api-key": "ä".encode()},
        {"cookie": f"key={KEY}"},
    ],
)
def test_no_key_or_a_wrong_one(headers):
    response = ask(KEYED, headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


def test_a_key_in_the_address_is_none():
    assert ask(KEYED, path=f"/v1/models?key={KEY}&api_key={KEY}").status_code == 401


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *both: compared.append(both) or True)
    assert ask(KEYED, headers={"x-api-key": "another"}).status_code == 200
    assert compared == [(b"another", KEY.encode())]


def test_without_a_key_any_is_fine():
    assert ask(LOCAL, headers={"authorization": "Bearer sk-anything"}).status_code == 200


def test_what_is_open_with_a_key():
    assert ask(KEYED, path="/health").status_code == 200
    assert ask(KEYED, path="/static/none").status_code == 404
    for path in ("/metrics", "/v1/responses/x", "/page/conversations", "/static", "/health/x", "/api/tags"):
        assert ask(KEYED, path=path).status_code == 401, path
    assert ask(KEYED, "POST", "/health").status_code == 401


def test_anthropic_reads_its_own_errors():
    response = ask(KEYED, "POST", "/v1/messages", json={})
    assert response.status_code == 401
    assert response.json()["type"] == "error"
    assert error_of(response)["type"] == "authentication_error"


def test_heads_that_are_too_large():
    many = [(f"x-{number}", "") for number in range(MAX_HEADERS)]
    assert ask(LOCAL, headers=many).status_code == 431
    assert ask(LOCAL, headers={"x": "a" * 40_000}).status_code == 431
    assert ask(LOCAL, path="/v1/models?" + "a" * 9_000).status_code == 414


@pytest.mark.parametrize(
    "path", ["/..%2f..%2fetc/passwd", "/static/../../app.py", "/static/%2e%2e/app.py", "/%00", "/v1/"]
)
def test_no_path_leads_to_the_disk(path):
    response = ask(LOCAL, path=path)
    assert response.status_code == 404
    assert error_of(response)["message"]


def test_origins_that_are_none():
    assert parse_origin("HTTPS://Example.org:443/") == "https://example.org"
    assert parse_origin("vscode-webview://abc") == "vscode-webview://abc"
    for text in ("*", "null", "example.org", "https://", "https://example.org/path", "https://a b", "https://*.a.org"):
        with pytest.raises(GptOssError, match="origin"):
            parse_origin(text)


def test_a_key_is_made_once(tmp_path):
    file = tmp_path / "new" / "key"
    key, is_new = own_key(file)
    assert is_new
    assert len(key) > 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert own_key(file) == (key, False)
    assert own_key(tmp_path / "other")[0] != key


@pytest.mark.parametrize("content", ["", "short", "a" * 2000, "two words and more of them", "ä" * 20, "a" * 20 + "\0"])
def test_files_without_a_key(tmp_path, content):
    file = tmp_path / "key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(GptOssError):
        read_key(file)


def test_a_key_that_others_can_read(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o640)
    with pytest.raises(GptOssError, match="chmod 600"):
        read_key(file)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"1",
        b"null",
        b"\xff",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 41 + b"}",
        b"[" * 100_000,
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b'{"a": [' + b"0," * MAX_SEPARATORS + b"0]}",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": 1} {"b": 2}',
    ],
)
def test_bodies_that_are_refused(body):
    with pytest.raises(RequestError) as refused:
        json_object(body)
    assert refused.value.status == 400
    assert refused.value.message


def test_bodies_that_are_read():
    assert json_object(b'{"a": ' + b"1" * 40 + b"}") == {"a": int("1" * 40)}
    nested = json_object(b'{"a":' * (MAX_DEPTH - 1) + b"1" + b"}" * (MAX_DEPTH - 1))
    assert list(nested) == ["a"]
    assert json_object(rb'{"a\ud83d": "\ud83d\ude00 \ud83d!", "b": "\\ud83d"}') == {
        "a�": "\U0001f600 �!",
        "b": "\\ud83d",
    }
