"""The special tokens of o200k_harmony that gpt-oss uses, by name."""

from __future__ import annotations


class Special(str):
    """A special token, by name. Any other string is ordinary text, whatever it looks like."""

    __slots__ = ()


START, MESSAGE, CHANNEL = Special("<|start|>"), Special("<|message|>"), Special("<|channel|>")
CONSTRAIN, END, CALL, RETURN = Special("<|constrain|>"), Special("<|end|>"), Special("<|call|>"), Special("<|return|>")

END_OF_TEXT = Special("<|endoftext|>")

NAMES = (START, CHANNEL, CONSTRAIN, MESSAGE, RETURN, CALL, END, END_OF_TEXT)
