"""The tools that a model may call: functions, commands, a browser, Python."""
