"""Owns the predicates that the consistency rules know by name and can read in a text; a world may have others beside them."""

from __future__ import annotations

from types import MappingProxyType

from body_broker.world.canon.model import Predicate


def _known(name: str, meaning: str, *, functional: bool = True) -> Predicate:
    return Predicate(name=name, functional=functional, meaning=meaning)


STANDARD = MappingProxyType(
    {
        predicate.name: predicate
        for predicate in (
            _known("alias", "Another name that people use for the subject, as text.", functional=False),
            _known("status", "alive, dead, missing or destroyed, with the story time since which."),
            _known("located_at", "The id of the place where the subject is, for a time of the story."),
            _known("part_of", "The id of the place or region that the subject, a place, lies in."),
            _known("age", "In whole years."),
            _known("eye_colour", "One colour, such as green."),
            _known("hair_colour", "One colour, such as red."),
            _known("home", "The id of the place where the subject lives."),
            _known("birthplace", "The id or name of the place where the subject was born."),
            _known("mother", "The id or name of the subject's mother."),
            _known("father", "The id or name of the subject's father."),
            _known("spouse", "The id or name of whom the subject is married to."),
            _known("occupation", "What the subject does for a living, in a word or two, such as undertaker."),
            _known("member_of", "The id or name of the faction that the subject belongs to."),
            _known("owner", "The id or name of who owns the subject, a thing or a place."),
            _known("killed_by", "The id or name of who killed the subject."),
        )
    }
)
"""By name. A world file lists those that it uses, and may give them another meaning; these texts are what the rules read."""
