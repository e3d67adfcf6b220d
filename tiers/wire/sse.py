"""Owns reading server-sent events from bytes that come in any pieces (WHATWG HTML, 9.2)."""

from __future__ import annotations

from tiers.faults import EngineFault

EVENT_BYTES_MAX = 4 * 1024 * 1024
"""More than one event of any engine: whoever sends more sends no events."""
_BOM = b"\xef\xbb\xbf"
_DATA, _END = b"data: ", b"\n\n"


class SseParser:
    """Bytes in, events out: `(name, data)`; the name is empty where the sender gave none.

    Lines end with LF, CRLF or CR, in any mixture and however they are split. What follows the last blank line is no event.
    """

    __slots__ = ("_after_cr", "_begun", "_data", "_left", "_name", "_size")

    def __init__(self) -> None:
        self._left, self._name, self._data, self._size = bytearray(), b"", list[bytes](), 0
        self._begun, self._after_cr = False, False

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """The events that are whole with this piece.

        Raises:
            EngineFault: `malformed`, where an event has no end.
        """
        if self._rests and _is_one(piece):
            self._begun = True
            return [("", piece[len(_DATA) : -len(_END)])]
        if self._after_cr and piece:
            piece, self._after_cr = piece.removeprefix(b"\n"), False  # the other half of a line's end
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        found: list[tuple[str, bytes]] = []
        if b"\n" not in piece:
            self._left += piece
        else:
            lines = (bytes(self._left) + piece if self._left else piece).split(b"\n")
            self._left = bytearray(lines.pop())
            for line in lines:
                if line:
                    self._field(line)
                elif (event := self._event()) is not None:
                    found.append(event)
        self._bound()
        return found

    @property
    def _rests(self) -> bool:
        return not (self._left or self._data or self._name or self._after_cr)

    def _event(self) -> tuple[str, bytes] | None:
        """What ends with a blank line."""
        name, data = self._name, self._data
        self._begun = True
        if name:
            self._name = b""
        if not data:
            return None
        self._data, self._size = [], 0
        return name.decode("utf-8", "replace") if name else "", data[0] if len(data) == 1 else b"\n".join(data)

    def _bound(self) -> None:
        if len(self._left) + self._size > EVENT_BYTES_MAX:
            raise EngineFault("malformed")

    def _field(self, line: bytes) -> None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BOM)
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
            self._size += len(line) + 1
            self._bound()
        elif field == b"event":
            self._name = value


def _is_one(piece: bytes) -> bool:
    """Whether this is one event of one line, as nearly every piece of every engine is."""
    return (
        piece.startswith(_DATA) and piece.endswith(_END) and piece.find(b"\n") == len(piece) - 2 and b"\r" not in piece
    )
