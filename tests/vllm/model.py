"""Owns the tiny model that the real vLLM of the tests serves: tokenizer, weights and chat template, written here, no network.

It is a table of which token follows which, laid into the weights of a transformer of one layer. It knows nothing and reads
nothing of what it is asked: its text is random words, its JSON random letters. Where it is offered tools it writes the calls
that the test gave it, once, and after their results it talks. So it proves protocol, grammar and scheduling, and no
intelligence.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONTEXT_TOKENS = 32_768
"""A token of a prompt is a byte."""
_PAD, _END, _TURN, _SAYS, _CALLS = "<|pad|>", "<|end|>", "<|turn|>", "<|says|>", "<|calls|>"
_SPECIAL = (_PAD, _END, _TURN, _SAYS, _CALLS)
_WORDS = "the a of and lantern ferry fog river rope stone bell tide market oar boat rain salt lamp moon ash crow door key rust"
_SIZE = 384
"""Of the vocabulary, and of the hidden state: each token has a dimension of its own."""
_HEAD = 64
_INNER = 64
_NEVER, _HARDLY = -40.0, -24.0
_LETTERS = "etaoinshrdlu"
_NOISE = 0.002
# What the model is most likely to write inside JSON: short strings, short numbers, few items.
_JSON = {'"': 0.12, "}": 0.04, "]": 0.04, ",": 0.01, ":": 0.01, "{": 0.01, "[": 0.01, "-": 0.001}
_FORM = ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
"""Of a call that a grammar asks for, in Hermes' form: each is one token, so a forced call is short."""
_ENDS = 1.6
"""How much likelier the end is than any one word; an answer has one word at least."""
# Where tools are offered and none has answered yet, the model is led to its calls; otherwise to words.
_TEMPLATE = (
    "{%- for m in messages -%}"
    + _TURN
    + "{{ m['role'] }}\n{{ m['content'] or '' }}"
    + "{%- for c in m.get('tool_calls') or [] %}\n{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}{% endfor -%}"
    + _END
    + "\n{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{%- if tools and messages[-1]['role'] != 'tool' -%}"
    + _CALLS
    + "{%- else -%}"
    + _SAYS
    + "{%- endif -%}{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tool call that the model writes whenever it is offered tools and none has answered yet."""

    name: str
    arguments: Mapping[str, object]


def make_model(folder: Path, calls: Sequence[Wanted]) -> None:
    """Write the model into a folder, as `from_pretrained` reads one; the same each time.

    Args:
        folder: Made where it is not there.
        calls: What it writes where it may call tools; at least one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = _script(calls)
    tokens = [*_SPECIAL, *_byte_letters(), *map(_spelt, (*_phrases(), *_FORM, *script))]
    assert len(tokens) == len(set(tokens)) <= _SIZE, "a token stands for one text alone"
    places = {token: place for place, token in enumerate(tokens)}
    _write(folder / "tokenizer.json", _tokenizer(places))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _END,
            "pad_token": _PAD,
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": _TEMPLATE,
        },
    )
    _write(folder / "config.json", _config(places))
    _write(folder / "generation_config.json", {"eos_token_id": places[_END], "pad_token_id": places[_PAD]})
    (folder / "model.safetensors").write_bytes(_safetensors(_weights(_following(places, script))))


def _phrases() -> list[str]:
    return [f" {word}" for word in _WORDS.split()]


def _script(calls: Sequence[Wanted]) -> list[str]:
    """The calls in Hermes' form and in nothing else, which a grammar would not let pass; each piece occurs once."""
    pieces: list[str] = []
    for number, call in enumerate(calls):
        gap = "\n" if number else ""
        pieces += [
            f'{gap}<tool_call>\n{{"name": "{call.name}", ',
            f'"arguments": {json.dumps(call.arguments)}}}\n</tool_call>',
        ]
    return pieces


def _following(places: Mapping[str, int], script: Sequence[str]) -> list[list[float]]:
    """For each token the logarithms of what follows it."""
    chain = [_CALLS, *map(_spelt, script), _END]
    words = {places[_spelt(each)]: 1.0 for each in _phrases()}
    more = words | {places[_END]: _ENDS}
    inside = {places[_spelt(text)]: share for text, share in _JSON.items()}
    inside |= {places[letter]: 0.04 for letter in _LETTERS}
    inside |= {places[digit]: 0.004 for digit in "0123456789"}
    inside |= {places[_spelt(part)]: 9.0 for part in _FORM} | {places[_END]: 0.02}
    rows = [_row(inside, places)] * _SIZE
    rows[places[_spelt(_FORM[-1])]] = _row({places[_END]: 1.0}, places, inside)
    rows[places[_SAYS]] = _row(words, places, inside)
    for word in words:
        rows[word] = _row(more, places, inside)
    for one, other in itertools.pairwise(chain):
        # A grammar that does not let the next call follow lets the answer end there.
        rows[places[one]] = _row({places[other]: 1.0}, places, inside | {places[_END]: 99.0})
    return rows


def _row(
    likely: Mapping[int, float], places: Mapping[str, int], otherwise: Mapping[int, float] | None = None
) -> list[float]:
    """What is likely; then, where a grammar forbids that, what is likely in JSON; then any printable text."""
    row = [_NEVER] * _SIZE
    for printable in range(0x20, 0x7F):
        row[places[_spelt(chr(printable))]] = _HARDLY
    for place, share in (otherwise or {}).items():
        row[place] = math.log(share) + _HARDLY / 2
    for place, share in likely.items():
        row[place] = math.log(share)
    return row


def _weights(following: Sequence[Sequence[float]]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """One layer that hardly says anything, between a token's own dimension and what follows it."""
    scale = math.sqrt(_SIZE)  # what the last norm makes of a state with one dimension
    one, ones = _bf16(1.0), _bf16(1.0) * _SIZE
    unit = b"".join(bytes(2 * place) + one + bytes(2 * (_SIZE - place - 1)) for place in range(_SIZE))
    known = {value: _bf16(value / scale) for row in following for value in set(row)}
    head = b"".join(known[following[place][after]] for after in range(_SIZE) for place in range(_SIZE))
    dice = random.Random(7)  # noqa: S311  # weights, not secrets
    noise = [_bf16(_NOISE * (value - 127.5) / 127.5) for value in range(256)]

    def random_of(*shape: int) -> tuple[tuple[int, ...], bytes]:
        return shape, b"".join(map(noise.__getitem__, dice.randbytes(math.prod(shape))))

    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": ((_SIZE, _SIZE), unit),
        "model.norm.weight": ((_SIZE,), ones),
        "lm_head.weight": ((_SIZE, _SIZE), head),
        layer + "input_layernorm.weight": ((_SIZE,), ones),
        layer + "post_attention_layernorm.weight": ((_SIZE,), ones),
        layer + "self_attn.q_proj.weight": random_of(_HEAD, _SIZE),
        layer + "self_attn.k_proj.weight": random_of(_HEAD, _SIZE),
        layer + "self_attn.v_proj.weight": random_of(_HEAD, _SIZE),
        layer + "self_attn.o_proj.weight": random_of(_SIZE, _HEAD),
        layer + "mlp.gate_proj.weight": random_of(_INNER, _SIZE),
        layer + "mlp.up_proj.weight": random_of(_INNER, _SIZE),
        layer + "mlp.down_proj.weight": random_of(_SIZE, _INNER),
    }


def _config(places: Mapping[str, int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": _SIZE,
        "hidden_size": _SIZE,
        "intermediate_size": _INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": places[_END],
        "pad_token_id": places[_PAD],
    }


def _tokenizer(places: Mapping[str, int]) -> dict[str, object]:
    """Bytes and nothing merged: the model writes whole words, and reads single bytes."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": places[each], "content": each, **flags} for each in _SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(places),
            "merges": [],
        },
    }


@functools.cache
def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, else one past 255."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256))
    return [chr(byte) if byte in seen else chr(256 + next(hidden)) for byte in range(256)]


def _spelt(text: str) -> str:
    letters = _byte_letters()
    return "".join(letters[byte] for byte in text.encode())


def _bf16(value: float) -> bytes:
    """The upper half of a float32, rounded."""
    bits = int.from_bytes(struct.pack("<f", value), "little")
    return ((bits + 0x8000) >> 16 & 0xFFFF).to_bytes(2, "little")


def _safetensors(tensors: Mapping[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    """The file format: the length of a JSON header, the header, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    return struct.pack("<Q", len(said)) + said + b"".join(data for _, data in tensors.values())


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
