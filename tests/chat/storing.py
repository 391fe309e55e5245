"""Conversations that are saved and resumed."""

from chat.conversing import make_session
from gptoss_mlx.chat.autosave import SessionAutosave

QUESTIONS = ["My locker code is 4711.", "What is 12 + 30?", "What is gptoss-mlx?", "What is 40 - 7?"]


def talk(model, autosave, questions=QUESTIONS, **options):
    session = make_session(model, **{"reasoning_effort": "none"} | options)
    for question in questions:
        list(session.send(question))
        autosave.save(session, kv=True)
    return session


def resumed(model, store, **options):
    autosave, session = SessionAutosave(store, store.find(), **options), make_session(model)
    return session, autosave.resume(session), autosave
