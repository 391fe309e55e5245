"""The tools that a model may call: functions, commands, a browser, Python."""

from pathlib import Path

EXAMPLE_FILE = Path(__file__).with_name("example.toml")  # of commands; `--tools example`
