"""The embedded checkpoint: what it promises, on held-out prompts, after conversion with the default recipe."""

import datetime
import hashlib
import json
from itertools import islice

import pytest

from conversations import Generator, training_samples
from evaluate import SEED, THRESHOLDS, examine, samples
from generator import LEAD_INS, held_out
from gptoss_mlx import load
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.files import render_file
from questions import draw_fact

COUNTS = {"arithmetic": 40, "recall": 25, "tool call": 50, "tool result": 50, "tools unused": 40, "project": 40}
FEW = 2  # prompts of each part, by default
# Of 50 samples of each of these: they are the same ones as ever, so that figures of models can be compared.
DIGESTS = {
    "arithmetic": "7d2a326e9d872f7c",
    "recall": "9f8266d6b7f04b0f",
    "tool call": "872c58e3dcd5425d",
    "tools unused": "cec450dcf815374b",
    "project": "8f99149dd91cbb77",
}
USER = {"role": "user", "content": "What is 1 + 2?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}, "days": {"type": "number"}},
            "required": ["location"],
        },
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Bermi"}'}}
LOOP = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "1 + 2 = 3"},
    USER,
    {"role": "assistant", "reasoning": "I call it.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": '{"sky": "sunny"}'},
]


@pytest.fixture(scope="module")
def model(demo_folder):
    return load(demo_folder)


@pytest.mark.slow
@pytest.mark.parametrize("part", THRESHOLDS)
def test_held_out_prompts(model, demo_folder, part):
    outcomes = list(examine(model, Tokenizer.load(demo_folder), part, COUNTS.get(part, 20)))
    right = sum(ok for _, ok, _ in outcomes)
    wrong = [(sample.conversation.messages[-1].content, reply) for sample, ok, reply in outcomes if not ok]
    assert right >= THRESHOLDS[part] * len(outcomes), wrong


def test_a_few_held_out_prompts_of_each_part(model, demo_folder):
    """By the same thresholds, which so few answers can meet together only."""
    tokenizer, wrong = Tokenizer.load(demo_folder), []
    for part in THRESHOLDS:
        outcomes = examine(model, tokenizer, part, FEW)
        wrong += [(part, sample.conversation.messages[-1].content, reply) for sample, ok, reply in outcomes if not ok]
    assert len(wrong) <= FEW * sum(1 - threshold for threshold in THRESHOLDS.values()), wrong


def test_recall_reaches_back_more_than_300_tokens(demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    for sample in samples("recall", COUNTS["recall"]):
        prompt, (_, value) = "".join(sample.segments[0]), sample.expected["answer"].rsplit(" is ", 1)
        assert len(tokenizer.encode_markup(prompt[prompt.rindex(f" is {value}") :])) > 300


@pytest.mark.parametrize("count", [250, pytest.param(3000, marks=pytest.mark.slow)])
def test_examined_questions_are_never_trained(count):
    """Not after any opening words either, and in no turn of a conversation."""
    stream = islice(training_samples(1), count)
    trained = {message.content for sample in stream for message in sample.conversation.messages}
    generator = Generator(SEED, held_out=True)
    examined = {generator.question(lambda: draw_fact(generator))[0] for _ in range(200)}
    assert all(held_out(question) for question in examined)
    assert not [
        said for said in trained if any(said == lead_in + question for lead_in in LEAD_INS for question in examined)
    ]


@pytest.mark.parametrize("part", DIGESTS)
def test_the_same_prompts_every_time(part):
    drawn = [(sample.segments, sample.expected) for sample in samples(part, 50)]
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest().startswith(DIGESTS[part])


def test_true_to_the_architecture():
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["model_type"] == "gpt_oss"
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * (config["num_hidden_layers"] // 2)
    assert config["sliding_window"] == 128
    assert config["num_experts_per_tok"] == 4
    assert config["num_local_experts"] >= 8
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["rope_scaling"]["truncate"] is False
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 10e6


@pytest.mark.parametrize(
    ("messages", "tools"), [([USER], []), ([USER], [WEATHER]), (LOOP, [WEATHER]), ([*LOOP, LOOP[2], USER], [WEATHER])]
)
def test_the_chat_template_says_what_we_render(tmp_path, messages, tools):
    from transformers.utils.chat_template_utils import render_jinja_template

    today = datetime.date.today().isoformat()
    data = {"messages": messages, "tools": tools, "reasoning_effort": "low", "current_date": today}
    (tmp_path / "talk.json").write_text(json.dumps(data))
    (text,), _ = render_jinja_template(
        [messages],
        tools=tools or None,
        chat_template=(CHECKPOINT / "chat_template.jinja").read_text(),
        add_generation_prompt=True,
        reasoning_effort="low",
    )
    assert text == render_file(tmp_path / "talk.json")
