"""Responses that are kept: what goes on from them, what is dropped."""

import json

import pytest

from gptoss_mlx.harmony.messages import Message, call, result
from gptoss_mlx.server.response_store import ResponseStore, StoredResponse
from server.loopback import refusal
from server.responding import answer, ask, called, frames, function, messages_of, output_item, said


def test_a_response_goes_on_from_another(client, service):
    service.begin(*called("f", '{"x": 1}'))
    first = answer(client, input="One", instructions="Be brief.", tools=[function("f", x="number")])
    service.begin(*said("Two."))
    second = answer(client, input=[output_item("42")], previous_response_id=first["id"], instructions="Be kind.")
    assert second["previous_response_id"] == first["id"]
    third = [Message("developer", "Be kind."), Message("user", "One"), Message("assistant", "I act.", "analysis")]
    third += [call("f", '{"x": 1}'), result("f", "42")]
    assert list(service.requests[-1].conversation.messages) == third
    answer(client, input="Three", previous_response_id=second["id"])
    told = [message.content for message in service.requests[-1].conversation.messages]
    assert told == ["One", "I act.", '{"x": 1}', "42", "I think.", "Two.", "Three"]


def test_a_streamed_response_is_kept_before_its_client_hears_of_its_end(client, service, monkeypatch):
    service.begin(*said("Yes."))
    final = frames(ask(client, stream=True))[-1]["response"]
    assert client.get(f"/v1/responses/{final['id']}").json() == final


def test_responses_that_are_not_kept(client, service):
    service.begin()
    asked_not_to, deleted = answer(client, store=False)["id"], answer(client)["id"]
    assert client.delete(f"/v1/responses/{deleted}").json() == {"id": deleted, "object": "response", "deleted": True}
    for gone in (asked_not_to, deleted, "resp_0"):
        response = ask(client, previous_response_id=gone)
        assert refusal(response)[:2] == (400, "previous_response_id")
        assert response.json()["error"]["code"] == "previous_response_not_found"
        for method, path in (("GET", gone), ("DELETE", gone), ("GET", f"{gone}/input_items")):
            assert refusal(client.request(method, f"/v1/responses/{path}"))[0] == 404


def test_input_items(client, service):
    service.begin(*said("Yes."))
    first = answer(client, input="One")
    second = answer(client, input=[{"role": "user", "content": "Two"}], previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    listed = client.get(path).json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    newest, *_, oldest = listed["data"]
    assert newest["content"] == "Two"
    assert oldest["content"] == [{"type": "input_text", "text": "One"}]
    assert {item["id"] for item in first["output"]} < {item["id"] for item in listed["data"]}
    page = client.get(path, params={"order": "asc", "limit": 1}).json()
    assert (page["data"], page["has_more"]) == ([oldest], True)
    rest = client.get(path, params={"order": "asc", "after": oldest["id"]}).json()
    assert rest["data"] == listed["data"][-2::-1]
    for query in ({"limit": "0"}, {"limit": "9" * 5000}, {"order": "up"}, {"after": "x"}):
        assert refusal(client.get(path, params=query))[:2] == (400, next(iter(query)))


def test_an_item_named_by_its_id(client, service):
    service.begin(*said("Yes."))
    (_, message) = answer(client)["output"]
    assert messages_of(client, service, [{"type": "item_reference", "id": message["id"]}]) == [
        Message("assistant", "Yes.", "final")
    ]


def test_openai_asks_for_what_is_kept(openai, service):
    from openai import BadRequestError, NotFoundError

    service.begin(*said("Yes."))
    id_ = openai.responses.create(model="m", input="Hi").id
    assert openai.responses.retrieve(id_).output_text == "Yes."
    (item,) = openai.responses.input_items.list(id_).data
    assert item.content[0].text == "Hi"
    openai.responses.delete(id_)
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(id_)
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="m", input="Hi", previous_response_id=id_)
    assert refused.value.code == "previous_response_not_found"


def stored(size, previous=None):
    response = json.dumps({"output": [{"id": f"item_of_{size}"}]}).encode()
    return StoredResponse(response, b"[" + b" " * (size - len(response) - 2) + b"]", previous)


def test_the_least_recently_used_is_dropped_for_a_new_one():
    store = ResponseStore(max_bytes=1000)
    for name in ("a", "b", "c"):
        store.add(name, stored(300))
    assert store.get("a")
    store.add("d", stored(300))
    assert [bool(store.get(name)) for name in ("a", "b", "c", "d")] == [True, False, True, True]
    store.delete("c")
    store.add("e", stored(400))
    assert [bool(store.get(name)) for name in ("a", "d", "e")] == [True, True, True]


def test_what_is_larger_than_all_the_room_is_not_kept():
    store = ResponseStore(max_bytes=1000)
    store.add("a", stored(300))
    store.add("b", stored(1001))
    assert (store.get("b"), len(store)) == (None, 0)
    store.add("c", stored(1000))
    assert store.get("c")


def test_the_number_of_responses_is_bounded():
    store = ResponseStore(max_responses=3)
    for number in range(9):
        store.add(str(number), stored(100))
    assert [number for number in range(9) if store.get(str(number))] == [6, 7, 8]


def test_a_chain_is_whole_or_gone_and_is_used_as_one():
    store = ResponseStore(max_responses=4)
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("x", None)):
        store.add(name, stored(100 + ord(name), previous))
    assert [each.size for each in store.chain("c")] == [100 + ord(name) for name in "abc"]
    store.add("y", stored(100))
    assert store.get("x") is None
    assert store.item("item_of_197")["id"] == "item_of_197"
    store.delete("a")
    assert store.chain("c") is None
    assert store.item("item_of_197") is None
