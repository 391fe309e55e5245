"""The functions that the demo model calls: eight, always under the same names, with the questions that need them.

A model of this size learns to call them, not to read a schema.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_mlx.harmony.messages import Tool
from words import CURRENCIES, draw_name, draw_text


@dataclass(frozen=True)
class ToolKind:
    name: str
    description: str
    parameters: dict[str, str]
    """name -> JSON type"""
    questions: list[str]
    draw: Callable[[random.Random], dict[str, str | int]]
    outcome: Callable[[random.Random], dict[str, str | int]]
    reply: str

    @property
    def tool(self) -> Tool:
        properties = {name: {"type": type_} for name, type_ in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(self.parameters)}
        return Tool(self.name, self.description, schema)


SKIES = ["sunny", "cloudy", "rainy", "windy", "foggy"]
KINDS = [
    ToolKind(
        "get_weather",
        "Gets the weather of a place.",
        {"location": "string"},
        [
            "What is the weather in {location}?",
            "How is the weather in {location}?",
            "Is it warm in {location}?",
            "Tell me the weather in {location}.",
            "Check the weather in {location}, please.",
        ],
        lambda r: {"location": draw_name(r)},
        lambda r: {"temperature": r.randint(0, 39), "sky": r.choice(SKIES)},
        "It is {temperature} degrees and {sky} in {location}.",
    ),
    ToolKind(
        "set_timer",
        "Starts a timer.",
        {"minutes": "number"},
        [
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Please set a timer for {minutes} minutes.",
        ],
        lambda r: {"minutes": r.randint(1, 99)},
        lambda r: {"status": "started"},
        "The timer of {minutes} minutes is {status}.",
    ),
    ToolKind(
        "add_note",
        "Saves a note.",
        {"text": "string"},
        ["Save a note: {text}.", "Add a note: {text}.", "Write a note: {text}.", "Please note down: {text}."],
        lambda r: {"text": draw_text(r)},
        lambda r: {"number": r.randint(1, 99)},
        "Note {number} is saved: {text}.",
    ),
    ToolKind(
        "convert_currency",
        "Converts an amount of money.",
        {"amount": "number", "from": "string", "to": "string"},
        [
            "Convert {amount} {from} to {to}.",
            "How many {to} are {amount} {from}?",
            "Change {amount} {from} into {to}.",
            "What are {amount} {from} in {to}?",
        ],
        lambda r: {"amount": r.randint(1, 999), **dict(zip(["from", "to"], r.sample(CURRENCIES, 2), strict=True))},
        lambda r: {"result": r.randint(1, 999)},
        "{amount} {from} are {result} {to}.",
    ),
    ToolKind(
        "send_message",
        "Sends a message to a person.",
        {"to": "string", "text": "string"},
        ["Send {to} the message: {text}.", "Tell {to}: {text}.", "Write to {to}: {text}.", "Message {to}: {text}."],
        lambda r: {"to": draw_name(r), "text": draw_text(r)},
        lambda r: {"status": r.choice(["sent", "delivered"])},
        "The message to {to} is {status}.",
    ),
    ToolKind(
        "play_song",
        "Plays a song.",
        {"title": "string"},
        ["Play {title}.", "Play the song {title}.", "I want to hear {title}.", "Put on {title}, please."],
        lambda r: {"title": draw_name(r)},
        lambda r: {"status": "playing"},
        "Now {status}: {title}.",
    ),
    ToolKind(
        "find_file",
        "Finds a file by name.",
        {"name": "string"},
        [
            "Find the file {name}.",
            "Where is the file {name}?",
            "Search for the file {name}.",
            "Look for the file {name}.",
        ],
        lambda r: {"name": f"{draw_name(r)}.{r.choice(['txt', 'pdf', 'csv', 'py'])}"},
        lambda r: {"folder": draw_name(r)},
        "The file {name} is in the folder {folder}.",
    ),
    ToolKind(
        "set_light",
        "Sets the light of a room.",
        {"room": "string", "level": "number"},
        [
            "Set the light in the {room} to {level}.",
            "Put the {room} light at {level}.",
            "Change the light in the {room} to {level}.",
        ],
        lambda r: {
            "room": r.choice(["kitchen", "bedroom", "hall", "garage", "office", "garden"]),
            "level": r.randint(0, 100),
        },
        lambda r: {"status": r.choice(["on", "set"])},
        "The light in the {room} is {status} at {level}.",
    ),
]

# What goes wrong in functions, in the words of Python, of those who write them and of a chat whose user refuses.
ERRORS = [
    "the user did not allow this call",
    "nobody is here to allow this call",
    "the user stopped this call",
    "there is no function {tool}",
    "the arguments are not JSON: {words}",
    "TimeoutError: timed out",
    "TimeoutError: no answer after {code} seconds",
    "ConnectionError: {word} is not reachable",
    "ConnectionError: no network",
    "ValueError: {words}",
    "ValueError: no such {word}",
    "ValueError: {name} is not known",
    "ValueError: {word} is out of range",
    "KeyError: '{name}'",
    "KeyError: '{word}'",
    "TypeError: {word} must be a number",
    "TypeError: {tool}() takes no {word}",
    "RuntimeError: {words}",
    "RuntimeError: error {code}",
    "PermissionError: {name} is locked",
    "FileNotFoundError: no file {name}",
    "OSError: {words}",
    "no {word} found",
    "{name} is not found",
    "unknown {word}: {name}",
    "status {code}",
    "error {code}: {words}",
    "{words}",
    "{word} failed",
    "try again later",
    "the service is down",
    "not allowed",
]
