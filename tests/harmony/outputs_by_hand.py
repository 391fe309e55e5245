"""Outputs with every fault that models were seen to make, and the events that they stand for."""

from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning, Stop, ToolCall

THINK = Reasoning("Think.")
ANALYSIS = "<|channel|>analysis<|message|>Think.<|end|>"
COMMENTARY = "<|channel|>commentary<|message|>"
HI = "<|channel|>final<|message|>Hi<|return|>"
CASES = {
    "analysis and final": (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "call, recipient behind the channel": (
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>',
        [ToolCall("f", '{"a":1}'), Stop("call")],
    ),
    "call, recipient in the role": (
        ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a":1}<|call|>',
        [ToolCall("f", '{"a":1}'), Stop("call")],
    ),
    "call after analysis, recipient in the role": (
        "<|channel|>analysis<|message|>Think.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call on the analysis channel": (
        "<|channel|>analysis to=functions.f code<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call on the final channel": (
        "<|channel|>final to=functions.f<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call of a built-in tool": (
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        [ToolCall("python", "1+1"), Stop("call")],
    ),
    "constraint glued to the recipient": (
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call without terminator": (
        "<|channel|>commentary to=functions.f<|message|>{}",
        [ToolCall("f", "{}"), Stop("none")],
    ),
    "call ended as a message": (
        "<|channel|>commentary to=functions.f<|message|>{}<|end|>",
        [ToolCall("f", "{}"), Stop("end")],
    ),
    "two calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>commentary to=functions.g<|message|>[]<|call|>",
        [ToolCall("f", "{}"), ToolCall("g", "[]"), Stop("call")],
    ),
    "preamble": (
        "<|channel|>commentary<|message|>First I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        [Preamble("First I look."), ToolCall("f", "{}"), Stop("call")],
    ),
    "message to all": ("<|channel|>commentary to=all<|message|>Hi<|end|>", [Preamble("Hi"), Stop("end")]),
    "no message token": ("<|channel|>final I am sorry, no.<|return|>", [Content("I am sorry, no."), Stop("return")]),
    "no message token in analysis": (
        "<|channel|>analysis Think.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "free text behind the channel": (
        "<|channel|>final about the sum<|message|>4<|return|>",
        [Content("4"), Stop("return")],
    ),
    "channel glued to the recipient": (
        "<|channel|>commentaryto=functions.f<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "unknown channel": ("<|channel|>thoughts<|message|>Think.<|end|>", [THINK, Stop("end")]),
    "no channel": ("<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "no header at all": ("Hi there<|return|>", [Content("Hi there"), Stop("return")]),
    "another's role": (
        "<|channel|>final<|message|>Hi<|end|><|start|>user<|message|>And you?<|end|>",
        [Content("Hi"), Reasoning("And you?"), Stop("end")],
    ),
    "doubled start": (
        "<|start|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "start and role repeated": (
        "<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "end, then return": ("<|channel|>final<|message|>Hi<|end|><|return|>", [Content("Hi"), Stop("return")]),
    "next message without end": (
        "<|channel|>analysis<|message|>Think.<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "next message without start": (
        "<|channel|>analysis<|message|>Think.<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "message token twice": ("<|channel|>final<|message|><|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "white space between messages": (
        "<|channel|>analysis<|message|>Think.<|end|>\n<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "broken off": ("<|channel|>final<|message|>Hi", [Content("Hi"), Stop("none")]),
    "broken off in a header": (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>fin",
        [THINK, Stop("none")],
    ),
    "end of text": ("<|channel|>final<|message|>Hi<|endoftext|>", [Content("Hi"), Stop("none")]),
    "empty answer": ("<|channel|>final<|message|><|return|>", [Stop("return")]),
    "nothing": ("", [Stop("none")]),
    # Text that belongs to no message.
    "number between messages": (
        f"{ANALYSIS} 364 <|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text between messages, next one without start": (
        f"{ANALYSIS} 364 <|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text ended as a message": (
        f"{ANALYSIS}Now.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text behind start and role": (
        f"{ANALYSIS}<|start|>assistant Now.<|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text before start": (f"Sure!<|start|>assistant{HI}", [Content("Hi"), Stop("return")]),
    "arguments without header": (f'{ANALYSIS}{{"a": 1}}<|call|>', [THINK, Stop("call")]),
    "answer without header": (f"{ANALYSIS}It is 4.<|return|>", [THINK, Content("It is 4."), Stop("return")]),
    "answer behind the role alone": (
        f"{ANALYSIS}<|start|>assistant It is 4.<|return|>",
        [THINK, Content("It is 4."), Stop("return")],
    ),
    "answer without header, broken off": (f"{ANALYSIS}It is", [THINK, Content("It is"), Stop("none")]),
    "answer without letters": ("👍<|return|>", [Content("👍"), Stop("return")]),
    "text before the first header": (f"some words {ANALYSIS}", [Preamble("some words"), THINK, Stop("end")]),
    "text before the first header, role repeated": (
        f"<|start|>assistant some words {ANALYSIS}",
        [Preamble("some words"), THINK, Stop("end")],
    ),
    "text before the first message": (
        "Well. <|message|>Hi<|return|>",
        [Preamble("Well."), Content("Hi"), Stop("return")],
    ),
    "word before the first channel": (f"Well. {HI}", [Preamble("Well."), Content("Hi"), Stop("return")]),
    "text before the first call": (
        f"I will look. to=functions.f{COMMENTARY}{{}}<|call|>",
        [Preamble("I will look."), ToolCall("f", "{}"), Stop("call")],
    ),
    "text behind a channel that is none": ("<|channel|>We think<|end|>", [Reasoning("We think"), Stop("end")]),
    "channel's name before the first header": (f"final{HI}", [Content("Hi"), Stop("return")]),
    "channel's name between messages": (f"{ANALYSIS}final{HI}", [THINK, Content("Hi"), Stop("return")]),
    "channel's name between calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>commentary"
        "<|channel|>commentary to=functions.g<|message|>{}<|call|>",
        [ToolCall("f", "{}"), ToolCall("g", "{}"), Stop("call")],
    ),
    "channel's name for a role": ("<|start|>final<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "channel's name for a role, with a recipient": (
        "<|start|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "another's role without start": (
        "<|channel|>final<|message|>Hi<|end|>user<|message|>And you?<|end|>",
        [Content("Hi"), Reasoning("And you?"), Stop("end")],
    ),
    "role with words": ("<|start|>Well then<|channel|>final<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    # A tool's role.
    "role is a tool that is called": (
        f'{ANALYSIS}<|start|>bash<|channel|>commentary json<|message|>{{"cmd":"ls"}}<|call|>',
        [THINK, ToolCall("bash", '{"cmd":"ls"}'), Stop("call")],
    ),
    "role is a tool's full name": (
        "<|start|>functions.f<|channel|>commentary json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "role is a tool that calls another": (
        f"<|start|>bash to=functions.f{COMMENTARY}{{}}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "mark behind the role": (f"<|start|>assistant:{HI}", [Content("Hi"), Stop("return")]),
    "result": (f"<|start|>functions.f to=assistant{COMMENTARY}sun<|end|>", [Stop("end")]),
    "result without recipient": (f"<|start|>functions.f{COMMENTARY}sun<|end|>", [Stop("end")]),
    "result without start": (f"{ANALYSIS}functions.f to=assistant{COMMENTARY}sun<|end|>", [THINK, Stop("end")]),
    "result of a built-in tool": ("<|start|>python to=assistant<|channel|>analysis<|message|>4<|end|>", [Stop("end")]),
    "result that ends as a call": (f"<|start|>functions.f to=assistant{COMMENTARY}sun<|call|>", [Stop("call")]),
    "result without message token": ("<|start|>bash to=assistant<|channel|>commentary the sun<|end|>", [Stop("end")]),
    # Headers that are cut off say nothing.
    **{
        f"cut off: {header}": (f"{ANALYSIS}<|start|>{header}", [THINK, Stop("none")])
        for header in (
            "assistant<|channel|>commentary to=",
            "assistant<|channel|>commentary t",
            "assistant<|channel|>commentary to=functions.f",
            "assistant<|channel|>commentary to=functions.f <|constrain|>js",
            "assistant<|channel|>commentary to=functions.f js",
            "assistant<|channel|>commentary json to=",
            "assistant<|channel|>comment",
            "assistant to=functions",
            "assistant to=",
            "assis",
            "functions.get_w",
            "functions.f to=assi",
            "bash to=",
            "user<|channel|>",
        )
    },
    "channel's name twice, no message token": (
        "<|channel|>commentary?commentary?Hi<|end|>",
        [Preamble("Hi"), Stop("end")],
    ),
    "channel's name only": ("<|channel|>commentary commentary<|end|>", [Stop("end")]),
    "channel twice": ("<|channel|>commentary<|channel|>commentary<|message|>Hi<|end|>", [Preamble("Hi"), Stop("end")]),
    "to= in a text without message token": (
        "<|channel|>final I have set to=5, to=functions.f too.<|return|>",
        [Content("I have set to=5, to=functions.f too."), Stop("return")],
    ),
    "prose for a constraint": (
        "<|channel|>commentary to=functions.f <|constrain|>write: edit it.<|end|>",
        [ToolCall("f", "write: edit it."), Stop("end")],
    ),
    "words between constraint and arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json as asked {"a": 1}<|call|>',
        [ToolCall("f", 'as asked {"a": 1}'), Stop("call")],
    ),
    "constraint and arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>',
        [ToolCall("f", '{"a": 1}'), Stop("call")],
    ),
    "recipient and arguments": (
        '<|channel|>commentary to=functions.f{"a": 1}<|call|>',
        [ToolCall("f", '{"a": 1}'), Stop("call")],
    ),
    # A call in a complete header counts wherever it stands.
    **{
        f"call: {header}": (f"{header}<|message|>{{}}<|call|>", [ToolCall("f", "{}"), Stop("call")])
        for header in (
            "<|channel|>commentary? to=functions.f json",
            "<|channel|>commentary, to=functions.f <|constrain|>json",
            "<|channel|>\u2013\u2013commentary to=functions.f json",
            "<|channel|>...commentary: to=functions.f",
            "<|channel|>commentary json to=functions.f",
            "<|channel|>commentary jsonto=functions.f",
            "<|channel|>commentary <|constrain|>json to=functions.f",
            "<|channel|>commentary for the user to=functions.f",
            "<|channel|>to=functions.f commentary",
            "<|channel|>analysis code to=functions.f",
            "<|channel|>final json to=functions.f",
            "<|channel|>commentary<|channel|>commentary to=functions.f",
            "<|channel|>commentary functions.f",
            "<|channel|>commentary functions.f json",
            "<|channel|>functions.f",
            '<|channel|>commentary to=functions.f{"a": 1}',
            "<|channel|>commentary to=functions.f. json",
            "<|channel|>commentary to=functions.f(json)",
            '<|channel|>commentary to="functions.f" json',
            "<|channel|>commentary to = functions.f json",
            "<|channel|>commentary to=f json",
            "<|channel|>commentary_to=functions.f",
            "<|channel|>commentary to functions.f",
            "<|channel|>commentary to: functions.f json",
            "<|channel|>commentary recipient=functions.f",
            "<|channel|>commentary (json) to=functions.f",
            " to=assistant<|channel|>commentary to=functions.f",
            "<|start|>assistant to=assistant<|channel|>commentary to=functions.f json",
            "<|channel|>commentary to=user to=functions.f",
            "<|start|><|start|>assistant I will look to=functions.f<|channel|>commentary",
            "<|start|>I will look to=functions.f<|channel|>commentary",
            "<|start|>assistantcommentary to=functions.f",
            "<|start|>assistant functions.f<|channel|>commentary",
            "commentary to=functions.f",
            "functions.f<|channel|>commentary json",
        )
    },
    "a tool that is spoken of": (
        f"{ANALYSIS}I have called functions.f for that.{HI}",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "a tool that is spoken of in a header": (
        "<|channel|>final about functions.f<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "call without start": (
        f"{ANALYSIS} to=functions.f{COMMENTARY}{{}}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call without start behind prose": (
        f"{ANALYSIS}I will look. to=functions.f{COMMENTARY}{{}}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call of python behind words": (
        "<|channel|>analysis code to=python<|message|>1+1<|call|>",
        [ToolCall("python", "1+1"), Stop("call")],
    ),
}
