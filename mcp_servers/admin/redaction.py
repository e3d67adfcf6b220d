"""Owns what is cut out of every text from AWS before anybody reads it: secrets by their form or their name, unseen characters, length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import cast

from body_broker.calls import Json
from body_broker.text import clean

REDACTED = "[redacted]"
TEXT_MAX = 256
ITEMS_MAX = 40
TAGS_MAX = 12
_SCANNED_MAX = 8_192

_TELLING_WORD = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key|credentials?)"
# A game has passes that are no passwords.
_NO_GAME = "(?<!battle)(?<!season)(?<!game)"
# What is told apart by its form, wherever it stands. Each is bounded, so that no text makes it slow.
_FORMS = (
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*",
    r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{12,20}(?![A-Z0-9])",  # the id of a key of AWS
    r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?",  # a JWT, with or without its signature
    r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|xapp-|ya29\.|[sr]k_(?:live|test)_|sk-|hf_|npm_|pypi-|dckr_pat_|SG\.)[\w.-]{12,}",
    r"\bAIza[\w-]{30,}",
    r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/@:]{0,100}:[^\s/@]{1,300}@\S{0,300}",  # an address with its password
    r"(?i:https?://\S{0,400}[?&](?:X-Amz-[a-z-]{4,40}|AWSAccessKeyId|Signature|sig|token|access_token|code)=\S*)",  # presigned
    # Whoever knows a webhook's address may write there.
    r"(?i:https?://(?:hooks\.slack\.com|discord(?:app)?\.com/api/webhooks|[\w.-]{1,100}\.webhook\.office\.com)/\S{1,400})",
    r"\b(?i:bearer|basic)\s+[\w.+/=-]{12,}",
    rf"(?i:\b[\w.-]{{0,40}}{_TELLING_WORD}[\w.-]{{0,40}}[\"']?\s{{0,3}}[=:]\s{{0,3}}[\"']?[^\s\"',;&]{{3,300}})",
    # These words tell only as the last of a name: an ssh_key_name or a pass_rate is no secret.
    rf"(?i:\b[\w.-]{{0,40}}(?:(?:ssh|encryption|master|signing)[_-]?key|creds|{_NO_GAME}[_.]pass)[\"']?\s{{0,3}}[=:]\s{{0,3}}[\"']?[^\s\"',;&]{{3,300}})",
    # An option of a command line, with its value after a space.
    r"(?i:(?<![\w-])--[\w-]{0,40}(?:passw(?:or)?d|passphrase|pass|pwd|secret|token|[_-]key)(?:\s{1,3}|=)[\"']?(?!-)[^\s\"']{3,300})",
    # A secret key of AWS: 40 characters of Base64, of every kind.
    r"(?<![\w/+.-])(?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Z0-9/+]{0,39}[a-z])(?=[A-Za-z/+]{0,39}\d)[A-Za-z0-9/+]{40}(?![\w/+=-])",
    r"\b(?=[a-z0-9_]{0,200}[A-Z])(?=[A-Z0-9_]{0,200}[a-z])(?=[A-Za-z_]{0,200}\d)\w{48,}\b",  # any long word that mixes them
)
_SECRET = re.compile("|".join(_FORMS), re.DOTALL)
# A tag or variable of such a name holds a secret, whatever its value looks like.
_NAME_OF_SECRET = re.compile(
    r"passw|passwd|passphrase|pwd|secret|token|api[ _.-]?key|access[ _.-]?key|private[ _.-]?key|account[ _.-]?key|credential"
    r"|conn(?:ection)?[ _.-]?str|dsn$|auth(?:$|[ _.-]?(?:key|header))|signature|licen[cs]e[ _.-]?key"
    rf"|(?<![a-z]){_NO_GAME}(?<!battle[ _.-])(?<!season[ _.-])(?<!game[ _.-])pass\d*$|(?-i:(?<=[a-z]){_NO_GAME}Pass$)"
    r"|(?:ssh|encryption|master|signing)[ _.-]?keys?\d*$|creds(?![a-z])",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """One line of the text: secrets replaced, unseen characters gone, cut to `TEXT_MAX`.

    Cutting comes last: half a secret would no longer look like one.
    """
    seen = clean(text[:_SCANNED_MAX]).replace("\n", " ").replace("\t", " ")
    return clean(_SECRET.sub(REDACTED, seen), limit=TEXT_MAX)


def shown(value: object) -> Json:
    """A value of AWS' answer as it may be shown: texts redacted, times in ISO 8601, lists and dicts bounded, empty ones gone."""
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case dict():
            pairs = list(cast("Mapping[object, object]", value).items())[:ITEMS_MAX]
            return _filled({redact(str(key)): shown(inner) for key, inner in pairs})
        case list() | tuple():
            found = cast("Sequence[object]", value)
            more = [f"and {len(found) - ITEMS_MAX} more"] if len(found) > ITEMS_MAX else []
            return [*map(shown, found[:ITEMS_MAX]), *more]
        case _:
            return redact(str(value))


def tags(found: object) -> dict[str, Json]:
    """Tags by name, from either of AWS' two forms; the values of those named like secrets are redacted."""
    if isinstance(found, Mapping):
        pairs = [(str(name), str(value)) for name, value in cast("Mapping[object, object]", found).items()]
    elif isinstance(found, list):
        entries = cast("list[Mapping[str, object]]", found)
        pairs = [(str(_either(e, "key") or ""), str(_either(e, "value") or "")) for e in entries]
    else:
        return {}
    pairs.sort()
    told: dict[str, Json] = {
        redact(name): REDACTED if _NAME_OF_SECRET.search(name) else redact(value) for name, value in pairs[:TAGS_MAX]
    }
    return told | ({"…": f"{len(pairs) - TAGS_MAX} more"} if len(pairs) > TAGS_MAX else {})


def item(fields: Mapping[str, object], tagged: object) -> dict[str, Json]:
    """A thing as it is shown: its fields and its tags, without what is empty."""
    return _filled({name: shown(value) for name, value in fields.items()} | {"tags": tags(tagged)})


def _either(entry: Mapping[str, object], key: str) -> object:
    """ECS writes `key`, everybody else `Key`."""
    return entry.get(key.capitalize(), entry.get(key))


def _filled(fields: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}
