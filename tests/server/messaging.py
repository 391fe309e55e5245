"""Messages of Anthropic's API that tests send."""

ASK = [{"role": "user", "content": "What is the weather in Bermi?"}]
BASIC = {"model": "any", "max_tokens": 100, "messages": ASK}
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"name": "weather", "description": "The weather of a place.", "input_schema": SCHEMA}
