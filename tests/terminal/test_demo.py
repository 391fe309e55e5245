"""The demo, as a person at a terminal meets it, and the chat with its model afterwards."""

import pytest

from terminal.terminals import Terminal

PROMPT = r"\n>$"


@pytest.fixture
def started(environment, command, tmp_path):
    terminals = []

    def started(*args) -> Terminal:
        terminals.append(Terminal([*command, *args], environment | {"GPTOSS_MLX_HOME": str(tmp_path)}))
        terminals[-1].wait(PROMPT)
        return terminals[-1]

    yield started
    for terminal in terminals:
        terminal.child.close(force=True)


def test_the_last_question_can_be_asked_again_and_the_model_is_there_afterwards(started):
    demo = started("demo")
    assert demo.seen.count("> What is the weather in Bermi?") == 1
    demo.line("/retry")
    demo.wait(r"> /retry\n(?s:.*)sunny in Bermi\.\n\n>$")
    demo.line("/exit")
    chat = started("chat", "demo")
    chat.line("/set temperature")
    chat.wait(r"temperature +0\.0\n(?s:.*)>$")
    chat.line("What is 12 + 30?")
    chat.wait(r"12 \+ 30 = 42\n(?s:.*)>$")
