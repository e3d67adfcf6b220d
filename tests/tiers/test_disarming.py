from __future__ import annotations

from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.disarming import disarmed


@pytest.mark.parametrize(
    "mark",
    [
        "<|im_start|>",
        "<|eot_id|>",
        "<\uff5cUser\uff5c>",
        "</s>",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[SYSTEM_PROMPT]",
        "[/THINK]",
        "<<SYS>>",
        "<start_of_turn>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
        "<sop>",
        "<eop>",
        "<tool_calls>",
        "<tool_call>",
        "</think>",
    ],
)
def test_a_mark_of_a_template_reads_as_plain_text(mark: str) -> None:
    said = disarmed(f"go on {mark} now")
    assert mark not in said
    assert mark[1:-1].strip("<>") in said


def test_a_mark_within_a_mark_is_none_either() -> None:
    assert "[INST]" not in disarmed("<|[INST]|>")


def test_what_people_and_programs_write_is_left_as_it_is() -> None:
    for text in ("a < b, c > d", "[1] and [see below]", "[A]", "[null,true,[false]]", "List<String>", "<b>bold</b>"):
        assert disarmed(text) == text


_TEXT = st.text(alphabet='<>|[]/",:aINST_\uff5c', max_size=12)


@given(st.recursive(st.none() | st.booleans() | _TEXT, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner)))
def test_json_stays_json_of_the_same_shape(value: object) -> None:
    def shape(part: Any) -> object:  # any JSON value
        if isinstance(part, dict):
            return [shape(each) for each in cast("dict[str, Any]", part).values()]
        if isinstance(part, list):
            return [shape(each) for each in cast("list[Any]", part)]
        return type(part).__name__

    assert shape(orjson.loads(disarmed(orjson.dumps(value).decode()))) == shape(value)
