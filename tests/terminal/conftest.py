"""A chat in this process, for the tests that need no terminal."""

import pytest

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.terminal.controller import Chat
from gptoss_mlx.terminal.screen import PlainScreen
from terminal.talking import SessionAutosave


@pytest.fixture(scope="module")
def model(demo_folder):
    return load(demo_folder)


@pytest.fixture
def chat(model):
    session = Session(model, functions=FUNCTIONS, sampling=Sampling(temperature=0))
    return Chat(session, PlainScreen(show_reasoning=None), SessionAutosave())
