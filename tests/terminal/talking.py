"""What tests of a chat in this process share."""

from dataclasses import replace
from functools import partial

from gptoss_mlx import Sampling, Session
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.terminal.slash_commands import run_line


class SessionAutosave:
    """Writes down what it is told."""

    name, store = "talk", ()

    def __init__(self):
        self.told = []

    def save(self, session, *, kv):
        self.told.append((kv, len(session.messages)))

    def rename(self, name):
        self.name = name

    def leave(self):
        self.told.append("leave")


def replaced(chat, **changes):
    functions = [replace(function, **changes) for function in FUNCTIONS]
    return Session(chat.session.model, functions=functions, sampling=Sampling(temperature=0))


def say(chat, text):
    chat.answer(partial(chat.session.send, text))


def notes(chat, capsys, *lines):
    """What is said to these lines."""
    capsys.readouterr()
    for line in lines:
        try:
            run_line(chat, line)
        except GptOssError as error:
            chat.screen.note(f"error: {error}")
    return capsys.readouterr().err.splitlines()


class Lines:
    """What is typed, a text after the other."""

    def __init__(self, *texts):
        self.texts, self.seen = list(texts), []

    def read(self, status, draft=""):
        self.seen.append((status, draft))
        return self.texts.pop(0) if self.texts else None


def asked(chat):
    return [message.content for message in chat.session.messages if message.role == "user"]


class Notebook:
    """A built-in tool that counts how often it was closed."""

    name, asks, closed = "python", True, 0

    def preview(self, function, text):
        return text.upper()

    def run(self, function, text):
        return "ran"

    def close(self):
        self.closed += 1
