"""The date of a conversation stays the one on which it began."""

from gptoss_mlx.harmony.messages import Conversation, Message
from gptoss_mlx.server import dates
from gptoss_mlx.server.dates import Dates, dated

BEGUN = (Message("developer", "Be kind."), Message("user", "Hi"))
GONE_ON = (*BEGUN, Message("assistant", "Hello.", "final"), Message("user", "And?"))


def date(known, messages, today):
    return known.dated(Conversation(messages), today).current_date


def test_a_conversation_keeps_its_date_and_a_new_one_has_todays():
    known = Dates()
    assert date(known, BEGUN, "2026-01-02") == "2026-01-02"
    assert date(known, GONE_ON, "2026-01-03") == "2026-01-02"
    assert date(known, BEGUN, "2026-01-04") == "2026-01-04"
    assert date(known, GONE_ON, "2026-01-05") == "2026-01-04"
    other = (Message("developer", "Be brief."), *GONE_ON[1:])
    assert date(known, other, "2026-01-05") == "2026-01-05"
    assert date(known, other, "2026-01-06") == "2026-01-06"


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(dates, "MAX_CONVERSATIONS", 2)
    known = Dates()
    openings = [(Message("user", text),) for text in "abac"]
    for opening in openings:
        date(known, opening, "2026-01-02")
    kept = [date(known, (*opening, GONE_ON[2]), "2026-01-03") for opening in openings]
    assert kept == ["2026-01-02", "2026-01-03", "2026-01-02", "2026-01-02"]


def test_requests_have_a_date(service, client):
    service.begin()
    client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
    (asked,) = service.requests
    assert asked.conversation.current_date == dated(asked.conversation).current_date
    assert asked.conversation.current_date is not None
    assert f"Current date: {asked.conversation.current_date}\n" in service.prompts[0]
