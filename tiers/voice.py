"""Owns how the text of several rounds with tools is told as one answer, and taken back as one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tiers.model import Listener, Told

BETWEEN = "\n\n"
"""What stands between the texts of two rounds."""


class Voice:
    """Tells the text of several rounds as one answer.

    Args:
        listener: Whoever hears it.
        strips: Whether blanks before the text of a round go: many engines write some before a call.
        whole: Whether the text is told at the end, in one piece.

    Attributes:
        before: What rounds that are over have told.
        first_at: When the first text was told that was not taken back, by the loop's clock; None before that.
    """

    def __init__(self, listener: Listener, *, strips: bool, whole: bool) -> None:
        self._listener, self._strips, self._whole = listener, strips, whole
        self.before, self._began = "", False
        self.first_at: float | None = None

    @property
    def restarts(self) -> bool:
        """Whether pieces may be taken back."""
        return self._listener.restarts

    def began(self) -> bool:
        """Whether anything of this round was told: blanks before it were not, nor is what is told at the end."""
        return self._began

    async def __call__(self, told: Told) -> None:
        """Hear one thing of this round."""
        if told.kind == "text":
            await self._text(told)
            return
        await self._listener(told)
        if told.kind == "restart":
            self._began = False
            if self.before:
                await self._listener(Told("text", self.before, told.outside))
            else:
                self.first_at = None

    async def _text(self, told: Told) -> None:
        if self._whole:
            return
        text = told.text.lstrip() if self._strips and not self._began else told.text
        if not text:
            return
        if not self._began and self.before:
            text = BETWEEN + text
        self._began = True
        self._speaks()
        await self._listener(replace(told, text=text))

    def next_round(self, text: str) -> None:
        """This round is over; its text was so."""
        if not self._whole and (text := text.lstrip()):
            self.before = f"{self.before}{BETWEEN}{text}" if self.before else text
        self._began = False

    async def take_back(self, *, outside: bool) -> None:
        """There will be no answer of which this was the beginning."""
        await self._listener(Told("restart", "failed", outside))

    async def end(self, text: str, *, outside: bool) -> None:
        """The answer is whole."""
        if self._whole and text:
            self._speaks()
            await self._listener(Told("text", text, outside))

    def _speaks(self) -> None:
        if self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()
