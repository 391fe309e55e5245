"""A chat that goes from one saved session to another."""

import pytest

from chat.storing import talk
from gptoss_mlx.chat import state_files
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.state_files import StateFiles
from gptoss_mlx.chat.store import InUse
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.errors import GptOssError


@pytest.fixture
def chat(model, store):
    """A session about a locker, and its autosave, after one about sums was left."""
    sums = SessionAutosave(store)
    talk(model, sums, ["What is 12 + 30?"])
    sums.leave()
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["My locker code is 4711."])
    yield session, autosave
    autosave.leave()


def asked(session):
    return [message.content for message in session.messages if message.role == "user"]


def is_free(store, name):
    with store.lock(store.find(name)):
        return True


def test_to_another_and_back(chat, store):
    session, autosave = chat
    autosave.switch(session, store.find("what"))
    assert asked(session) == ["What is 12 + 30?"]
    assert autosave.resumed_text(session) == "Resuming what-is-12-30 (1 turn)."
    assert is_free(store, "my")
    with pytest.raises(InUse):
        store.lock(store.find("what"))
    list(session.send("What is 40 - 7?"))
    autosave.switch(session, store.find("my"))
    assert autosave.resumed_text(session) == "Resuming my-locker-code-is-4711 (1 turn)."
    assert list(session.send("What is my locker code?"))[-1].finished
    assert session.messages[-1].content == "Your locker code is 4711."
    assert Transcript.read(store.find("what").transcript).turns == 2


def test_one_that_others_use_is_refused(chat, store):
    session, autosave = chat
    with store.lock(store.find("what")), pytest.raises(InUse, match="in use by another"):
        autosave.switch(session, store.find("what"))
    stays(chat, store)


def test_one_that_is_damaged_is_refused(chat, store):
    session, autosave = chat
    store.find("what").transcript.write_text("{")
    with pytest.raises(GptOssError, match="is not JSON"):
        autosave.switch(session, store.find("what"))
    stays(chat, store)


def test_a_model_whose_files_are_gone(chat, store, monkeypatch):
    def fails(model):
        raise GptOssError("cannot read the model")

    session, autosave = chat
    monkeypatch.setattr(state_files, "fingerprint", fails)
    with pytest.raises(GptOssError, match="cannot read the model"):
        autosave.switch(session, store.find("what"))
    stays(chat, store)


def stays(chat, store):
    session, autosave = chat
    assert autosave.name == "my-locker-code-is-4711"
    assert asked(session) == ["My locker code is 4711."]
    assert is_free(store, "what")
    list(session.send("What is my locker code?"))
    autosave.save(session, kv=False)
    assert Transcript.read(store.find("my").transcript).turns == 2


@pytest.mark.parametrize(("owner", "method"), [(Transcript, "write"), (StateFiles, "save")])
def test_what_cannot_be_saved_is_not_left(chat, store, monkeypatch, owner, method):
    def full(*_):
        raise GptOssError("No space left on device")

    session, autosave = chat
    with monkeypatch.context() as patches:
        patches.setattr(owner, method, full)
        with pytest.raises(GptOssError, match="No space"):
            autosave.switch(session, store.find("what"))
    stays(chat, store)
