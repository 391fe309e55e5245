"""The page's requests, over real connections: sessions of the terminal, turns, files, and what is refused."""

import json
import re

import httpx
import pytest

from chat.conversing import Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.store import Store
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.server.page import STATIC

from .paging import CALL, FINAL, THOUGHT, PageServer, begin, counted, finish, html, of, pieces_of

MAX_PAGE = 150_000  # bytes


@pytest.fixture(scope="module")
def server(demo_folder, tmp_path_factory):
    with PageServer(demo_folder, Store(tmp_path_factory.mktemp("page") / "sessions")).running() as server:
        yield server


@pytest.fixture
def page(server, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    Scripted.waiting = []
    server.seen.clear()
    server.calls.clear()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for each in client.get("/page/conversations").json():
            assert client.delete(f"/page/conversations/{each['name']}").status_code == 200
        yield client


def ask(page, server, answer, **fields):
    server.script(answer)
    return finish(page, begin(page, **fields))


def wait_for(page, turn, kind, **content):
    """The pieces, once one of them is like this."""
    seen = {}
    with page.stream("GET", f"/page/turns/{turn}") as reply:
        text = ""
        for part in reply.iter_text():
            text += part
            pieces, _ = pieces_of(text[: text.rindex("\n\n") + 2] if "\n\n" in text else "")
            seen = next((each for each in of(pieces, kind) if content.items() <= each.items()), None)
            if seen:
                return pieces
    raise AssertionError(f"there is no {kind} with {content}")


def test_the_page_is_small_and_asks_nobody_else(page):
    reply = page.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    linked = re.findall(r'(?:src|href)="([^"#]+)"', reply.text)
    assert linked
    assert all(link.startswith("/static/") for link in linked)
    assert all(page.get(link).status_code == 200 for link in linked)
    assert not re.search(r"style=|<script>|\son\w+=", reply.text)
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MAX_PAGE
    script = "".join(path.read_text() for path in STATIC.glob("*.js"))
    assert script.count(".innerHTML") == 1
    assert "https://" not in script.replace("https://example.org", "")


def test_a_turn_is_a_session_of_the_terminal(page, server):
    pieces = ask(page, server, f"{THOUGHT}{FINAL}It is **four**.<|return|>", text="What is two and two?")
    assert [piece["kind"] for piece in pieces] == [
        "name",
        "prefill",
        "reasoning",
        "block",
        "answer",
        "block",
        "stats",
        "end",
    ]
    assert "It is <strong>four</strong>." in html(pieces)
    assert of(pieces, "reasoning")[0]["tokens"] > 0
    (entry,) = server.store
    assert entry.name == of(pieces, "name")[0]["name"] == "what-is-two-and-two"
    saved = Transcript.read(entry.transcript)
    assert [message.content for message in saved.messages if message.channel != "analysis"] == [
        "What is two and two?",
        "It is **four**.",
    ]
    assert not saved.unfinished
    shown = page.get(f"/page/conversations/{entry.name}").json()
    assert [message["kind"] for message in shown["messages"]] == ["question", "reasoning", "answer"]
    assert shown["turn"] is None


def test_what_began_in_the_terminal_goes_on_here(page, server, model_session):
    model_session("What is my name?")
    pieces = ask(page, server, f"{FINAL}Ann.<|return|>", text="And now?", name="what-is-my-name")
    assert "Ann." in html(pieces)
    assert Transcript.read(server.store.find("what-is-my-name").transcript).turns == 2


@pytest.fixture
def model_session(server):
    """Write a session as the terminal does."""

    def write(question):
        with server.store.new(question) as lock:
            message = {"role": "user", "content": question}
            answer = {"role": "assistant", "channel": "final", "content": "Yes."}
            text = (
                '{"format": "gptoss-mlx conversation 1", "model": null, "instructions": null,'
                ' "reasoning_effort": "low", "current_date": "2026-01-02", "unfinished": false,'
                f' "messages": [{message}, {answer}]}}'.replace("'", '"')
            )
            lock.entry.transcript.write_text(text)

    return write


def test_a_conversation_in_use_says_so(page, server, model_session):
    model_session("Mine")
    with server.store.lock(server.store.find("mine")):
        replies = [
            page.post("/page/turns", json={"text": "x", "name": "mine"}),
            page.delete("/page/conversations/mine"),
            page.post("/page/conversations/mine/rename", json={"name": "other"}),
            page.post("/page/conversations/mine/undo"),
        ]
    assert {reply.status_code for reply in replies} == {409}
    assert all("in use" in reply.json()["error"]["message"] for reply in replies)


def test_regenerate_edit_undo(page, server):
    ask(page, server, f"{FINAL}One.<|return|>", text="First")
    ask(page, server, f"{FINAL}Two.<|return|>", text="Second", name="first")
    contents = lambda: [m.content for m in Transcript.read(server.store.find("first").transcript).messages]  # noqa: E731
    ask(page, server, f"{FINAL}Three.<|return|>", action="retry", name="first")
    assert contents() == ["First", "One.", "Second", "Three."]
    assert page.post("/page/conversations/first/undo").json() == {"text": "Second"}
    assert contents() == ["First", "One."]
    ask(page, server, f"{FINAL}Four.<|return|>", text="Another", name="first", keep=0)
    assert contents() == ["Another", "Four."]
    assert page.post("/page/conversations/first/undo").json() == {"text": "Another"}
    assert page.get("/page/conversations").json() == []


def test_rename_export_delete(page, server):
    ask(page, server, f"{FINAL}Yes.<|return|>", text="Alpha")
    assert page.post("/page/conversations/alpha/rename", json={"name": "be ta"}).json() == {"name": "be ta"}
    assert page.post("/page/conversations/be%20ta/rename", json={"name": "../x"}).status_code == 400
    assert "## Alpha" in page.get("/page/conversations/be%20ta/export").text
    assert page.get("/page/conversations/be%20ta/export?format=json").json()["messages"]
    assert page.delete("/page/conversations/be%20ta").status_code == 200
    assert list(server.store) == []


@pytest.mark.parametrize("name", ["..%2fsecret", "%2e%2e", "al", "alpha.json", "a%00b", "%2fetc%2fpasswd"])
def test_only_exact_names_are_found(page, server, name):
    ask(page, server, f"{FINAL}Yes.<|return|>", text="Alpha")
    for reply in (page.get(f"/page/conversations/{name}"), page.delete(f"/page/conversations/{name}")):
        assert reply.status_code in (404, 405)
    assert len(list(server.store)) == 1


@pytest.mark.parametrize(("answer", "runs"), [("yes", [1]), ("no", [])])
def test_a_person_is_asked(page, server, answer, runs):
    server.script(CALL, f"{FINAL}Done.<|return|>")
    server.seen.set()
    turn = begin(page)
    asking = of(wait_for(page, turn, "call", state="asking"), "call")[0]
    assert asking["name"] == "look"
    assert server.calls == []
    assert page.post(f"/page/turns/{turn}/approve", json={"answer": "perhaps"}).status_code == 400
    assert page.post(f"/page/turns/{turn}/approve", json={"answer": answer}).status_code == 200
    pieces = finish(page, turn)
    assert of(pieces, "call")[0]["state"] == "done"
    assert ("did not allow" in of(pieces, "call")[0]["output"]) == (answer == "no")
    assert server.calls == runs
    assert page.post(f"/page/turns/{turn}/approve", json={"answer": "yes"}).status_code == 409


def test_always_holds_for_this_tool_and_conversation(page, server):
    server.seen.set()
    server.script(CALL, CALL, f"{FINAL}Done.<|return|>")
    turn = begin(page)
    wait_for(page, turn, "call", state="asking")
    page.post(f"/page/turns/{turn}/approve", json={"answer": "always"})
    finish(page, turn)
    ask(page, server, f"{CALL}{FINAL}Again.<|return|>", name="hello-there")
    assert server.calls == [1, 1, 1]
    server.script(CALL, f"{FINAL}No.<|return|>")
    turn = begin(page, text="elsewhere")
    wait_for(page, turn, "call", state="asking")
    page.post(f"/page/turns/{turn}/approve", json={"answer": "no"})
    finish(page, turn)


def test_others_are_answered_while_a_tool_runs(page, server):
    server.script(CALL)
    turn = begin(page)
    wait_for(page, turn, "call", state="asking")
    page.post(f"/page/turns/{turn}/approve", json={"answer": "yes"})
    wait_for(page, turn, "call", state="running")
    assert "Quick." in html(ask(page, server, f"{FINAL}Quick.<|return|>", text="Other"))
    server.script(f"{FINAL}Late.<|return|>")
    server.seen.set()
    assert "Late." in html(finish(page, turn))


def test_stop_keeps_what_arrived(page, server):
    server.script(CALL)
    turn = begin(page)
    wait_for(page, turn, "call", state="asking")
    assert page.post(f"/page/turns/{turn}/stop").status_code == 200
    pieces = finish(page, turn)
    assert "Stopped" in of(pieces, "note")[0]["text"]
    saved = Transcript.read(server.store.find("hello-there").transcript)
    assert saved.unfinished
    assert "stopped this call" in saved.messages[-1].content
    pieces = ask(page, server, f"{FINAL}Resumed.<|return|>", action="resume", name="hello-there")
    assert "Resumed." in html(pieces)


def test_a_lost_connection_goes_on_where_it_was(page, server):
    server.script(THOUGHT, CALL)
    turn = begin(page)
    with page.stream("GET", f"/page/turns/{turn}") as reply:
        text = ""
        for part in reply.iter_text():
            text += part
            if '"asking"' in text:
                break
    _, last = pieces_of(text)
    assert page.get("/page/conversations/hello-there").json()["turn"] == turn
    assert page.get("/page/conversations").json()[0]["running"]
    server.script(f"{FINAL}Still here.<|return|>")
    server.seen.set()
    page.post(f"/page/turns/{turn}/approve", json={"answer": "yes"})
    later = finish(page, turn, last)
    assert not of(later, "reasoning")
    assert "Still here." in html(later)
    assert later[-1]["kind"] == "end"
    assert finish(page, turn, last) == later  # once more, after the end


def test_files_belong_to_the_message(page, server):
    ask(page, server, f"{FINAL}Read.<|return|>", text="Sum up", files=[{"name": "a.txt", "text": "one\r\ntwo\n"}])
    (question,) = [
        m.content for m in Transcript.read(server.store.find("sum-up").transcript).messages if m.role == "user"
    ]
    assert question == "Sum up\n\nFile a.txt:\n```\none\ntwo\n```"
    for text in ("a\0b", "x" * 1_000_001):
        assert page.post("/page/turns", json={"text": "x", "files": [{"name": "b", "text": text}]}).status_code == 400


def test_an_answer_follows_a_schema(page, server):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    pieces = ask(page, server, f'{FINAL}{{"n":7}}<|return|>', settings={"schema": schema, "reasoning_effort": "low"})
    assert "{&quot;n&quot;:7}" in html(pieces) or '{"n":7}' in html(pieces)


WRONG = [1, "x", [], {}, True, -1, 1e400, [[1]], {"a": None}]


@pytest.mark.parametrize("field", ["action", "name", "text", "files", "keep", "settings"])
def test_wrong_fields_are_refused(page, field):
    for value in WRONG if field != "text" else [1, [], {}, True, {"a": None}]:
        body = {"action": "ask", "text": "", field: value}
        reply = page.post("/page/turns", content=json.dumps(body))
        assert 400 <= reply.status_code < 500, (field, value, reply.text)
    for field in ("temperature", "top_p", "max_tokens", "schema", "instructions", "reasoning_effort"):
        reply = page.post("/page/turns", json={"text": "x", "settings": {field: [None]}})
        assert reply.status_code == 400, (field, reply.text)


def test_unknown_turns_and_numbers_are_refused(page):
    assert page.get("/page/turns/nothing").status_code == 404
    assert page.post("/page/turns/nothing/stop").status_code == 404
    assert page.post("/page/turns", json={"text": "x", "name": "nothing"}).status_code == 404


def test_errors_of_a_turn_are_shown(page, server):
    pieces = finish(page, begin(page, text="word " * 200_000))
    assert of(pieces, "note")[0]["error"]
    assert list(server.store) == []


def test_a_long_answer_is_rendered_at_its_end_alone(page, server):
    paragraphs = "".join(f"Paragraph {number}.\n\n" for number in range(40))
    pieces = ask(page, server, f"{FINAL}{paragraphs}<|return|>")
    assert html(pieces).count("<p") == 40
    blocks = of(pieces, "block")
    assert len({piece["at"] for piece in blocks}) == len(blocks)


def test_turns_are_counted_and_have_a_line_in_the_log(page, server, log):
    before = counted(page)
    ask(page, server, f"{FINAL}One.<|return|>", text="My secret")
    server.seen.set()
    server.script(CALL)
    turn = begin(page, text="And another", name="my-secret")
    wait_for(page, turn, "call", state="asking")
    during = counted(page)
    page.post(f"/page/turns/{turn}/stop")
    finish(page, turn)
    server.script(CALL, f"{FINAL}Two.<|return|>")
    turn = begin(page, text="Once more", name="my-secret")
    wait_for(page, turn, "call", state="asking")
    page.post(f"/page/turns/{turn}/approve", json={"answer": "yes"})
    (stats,) = of(finish(page, turn), "stats")
    after = counted(page)
    new = lambda name: after[f"gptoss_{name}"] - before[f"gptoss_{name}"]  # noqa: E731
    prompt, cached, sampled = (new(f'tokens_total{{kind="{kind}"}}') for kind in ("prompt", "cached", "sampled"))
    encoded = [server.service.model.tokenizer.encode_markup(text) for text in (FINAL + "One.", CALL, FINAL + "Two.")]
    assert sampled == len(encoded[0]) + 1 + len(encoded[1]) + len(encoded[2]) + 1
    assert cached > 0
    assert 0 < stats["prefilled"] <= prompt - cached
    assert new("first_token_seconds_count") == new("tokens_per_second_count") == 2
    assert new("first_token_seconds_sum") > 0
    assert (during["gptoss_answers_running"], after["gptoss_answers_running"]) == (1, 0)
    assert after["gptoss_answers_waiting"] == 0
    lines = [line for record in log if (line := record.getMessage()).startswith("a turn")]
    assert len(lines) == 3
    counts = r"a turn of the page, [\d,]+ tokens read \([\d,]+ cached\), \d+ written, [\d.]+ tokens/s"
    assert re.fullmatch(counts, lines[0])
    assert lines[1] == "a turn of the page, not finished"
    assert re.fullmatch(counts, lines[2])
    page.get("/page/conversations/my-secret")
    assert not any("secret" in record.getMessage() for record in log)


def test_the_caches_in_memory_are_measured(page, server):
    ask(page, server, f"{FINAL}One.<|return|>")
    measured = counted(page)
    assert measured["gptoss_conversations_resting"] == server.service.pool.resting > 0
    assert measured['gptoss_memory_bytes{kind="caches"}'] == server.service.pool.nbytes > 1000


def test_about_says_what_there_is(page):
    about = page.get("/page/about").json()
    assert about["model"] == "demo"
    assert about["plan"]
    assert "high" in about["efforts"]
