"""What a conversation that is sent whole costs before its first token: by the clock."""

import json
import time
from statistics import median

import httpx
import pytest

import gptoss_mlx
from chat.conversing import QUESTIONS, make_session
from gptoss_mlx.chat.turn import Prefill, Waiting
from gptoss_mlx.harmony.parse import Content

from .test_load import WAIT, server

pytestmark = pytest.mark.timing


def test_the_first_token_of_a_long_conversation_comes_as_in_a_chat(demo_folder, environment):
    questions = [each for each in QUESTIONS if "weather" not in each]
    questions = [questions[index % len(questions)] for index in range(20)]
    session = make_session(gptoss_mlx.load(demo_folder), functions=(), yields_steps=True)
    in_chat, over_http, messages = [], [], []
    with server(demo_folder, environment) as (_, url), httpx.Client(base_url=url, timeout=WAIT) as http:
        for question in questions:
            began, first, text = time.perf_counter(), None, ""
            for event in session.send(question):
                if not isinstance(event, Prefill | Waiting):
                    first = first or time.perf_counter()
                text += event.text if isinstance(event, Content) else ""
            in_chat.append(first - began)
            messages.append({"role": "user", "content": question})
            body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 300, "stream": True}
            began, first = time.perf_counter(), None
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                for line in response.iter_lines():
                    if not first and line.startswith("data: {"):
                        delta = json.loads(line[6:])["choices"][0]["delta"]
                        first = time.perf_counter() if delta.get("reasoning") or delta.get("content") else None
            over_http.append(first - began)
            messages.append({"role": "assistant", "content": text})
    print(median(in_chat[-12:]), median(over_http[-12:]))
    assert median(over_http[-12:]) < 1.2 * median(in_chat[-12:])
