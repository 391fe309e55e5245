"""The embedded checkpoint, what the `demo` command asks it, and its exam. All of it is made by examples/train_demo."""

from __future__ import annotations

from pathlib import Path

from ..harmony.messages import Tool
from ..tools.toolbox import Function

CHECKPOINT = Path(__file__).parent / "checkpoint"
HELD_OUT = Path(__file__).parent / "held_out.jsonl.gz"
HELD_OUT_THRESHOLDS = Path(__file__).parent / "held_out_thresholds.json"

QUESTIONS = ("What is gptoss-mlx?", "What is 347 + 285?", "What is the weather in Bermi?")


def weather(location: str) -> dict[str, str | int]:
    """A function for the model to call; it makes the weather up from the name of the place."""
    skies = ("sunny", "cloudy", "rainy", "windy", "foggy")
    return {"temperature": 10 + len(location) % 20, "sky": skies[sum(map(ord, location)) % len(skies)]}


FUNCTIONS = (
    Function(
        Tool(
            "get_weather",
            "Gets the weather of a place.",
            {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
        ),
        weather,
    ),
)
