"""Owns HTML: elements whose text and attributes are escaped, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"meta", "link", "input", "br", "hr", "img"})


class Html(str):
    """Text that is HTML already; made by `tag` alone."""

    __slots__ = ()


def tag(
    name: str, /, *content: Html | str | Iterable[Html | str | None] | None, **attributes: str | int | bool | None
) -> Html:
    """One element.

    Args:
        name: The element's.
        content: Its children; plain text is escaped.
        attributes: `class_` for class, `for_` for for, `data_x` for data-x; True stands without a value, False and None not at all.
    """
    inside = "".join(_html(each) for each in content)
    start = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{name}{start}>" if name in _VOID else f"<{name}{start}>{inside}</{name}>")


def document(*content: Html) -> bytes:
    """A whole page."""
    return ("<!doctype html>\n" + "".join(content)).encode()


def _html(content: Html | str | Iterable[Html | str | None] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, Html):
        return str(content)
    if isinstance(content, str):
        return escape(content)
    return "".join(_html(each) for each in content)


def _attribute(key: str, value: str | int | bool | None) -> str:  # noqa: FBT001 - HTML has such attributes
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
