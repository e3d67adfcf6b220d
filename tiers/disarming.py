"""Owns taking the edge off text that goes to a model: the marks of the chat templates we know read as plain text in it."""

from __future__ import annotations

import re

_MARKS = re.compile(
    r"<[|\uff5c][^<>\[\]\n]{0,80}>"  # <|im_start|>, <|eot_id|>, DeepSeek's with its own bars
    r"|</?s>|\[/?INST\]|<</?SYS>>"  # Llama 2
    r"|(?-i:\[/?[A-Z_]{2,30}\])"  # Mistral's [TOOL_CALLS] and its like; in small letters it is JSON, such as [null]
    r"|</?(?:start|end)_of_turn>"  # Gemma
    r"|<(?:bos|eos|pad|unk|sop|eop|tool_calls)>"
    r"|</?(?:tool_call|tool_response|tools|think)>",  # Hermes, Qwen, and what models think in
    re.IGNORECASE,
)
_BLUNT = str.maketrans("<>[]", "\u2039\u203a\u2045\u2046")


def disarmed(text: str) -> str:
    """The same text, in which no mark of the templates we know is spelled: engines read these wherever they stand.

    What is JSON stays JSON.
    """
    return _MARKS.sub(lambda mark: mark.group().translate(_BLUNT), text)
