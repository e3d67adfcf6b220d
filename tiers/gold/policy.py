"""Owns what an NPC does when no model says it: a few rules over its state, the same each time, in microseconds, without any store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tiers.gold.intents import ALONE, CALM, Present, Scene, Wanted

HOSTILE, FRIENDLY = -40, 40
WEAK = 30
"""Health below which it saves itself."""
_ANGRY = frozenset({"angry", "enraged", "furious", "hostile", "hateful", "vengeful", "aggressive"})
_AFRAID = frozenset({"afraid", "fearful", "scared", "terrified", "nervous", "panicked"})
_ON_DUTY = ("guard", "watch", "patrol", "sentry", "sentinel", "warden")


def wants(scene: Scene | None) -> Iterator[tuple[Wanted, str]]:
    """What it wants, the first first, each with the rule that says so; the last is always `wait`."""
    if scene is not None and scene.alive:
        yield from _facing_enemies(scene)
        yield from _facing_others(scene)
        yield from _alone(scene)
    yield Wanted("wait"), "nothing_known" if scene is None else "dead" if not scene.alive else "nothing_to_do"


def decide(scene: Scene | None, choices: Sequence[str] = ()) -> tuple[str, str]:
    """The answer, and the rule that gave it.

    Args:
        scene: The NPC as it stands; None where that is not known.
        choices: The answer is one of these, where there are any.
    """
    for wanted, rule in wants(scene):
        if not choices:
            return wanted.line, rule
        found = among(wanted.line, choices)
        if found is not None:
            return found, rule
    calm = next((c for word in CALM for c in choices if c.lower() == word), None)
    return (calm, "calm") if calm is not None else (choices[0], "first_choice")


def _facing_enemies(scene: Scene) -> Iterator[tuple[Wanted, str]]:
    enemy = _worst(scene)
    if enemy is None:
        return
    if scene.health < WEAK or scene.mood in _AFRAID:
        yield Wanted("flee", enemy.id), "flees_when_weak_or_afraid"
        yield Wanted("hide"), "flees_when_weak_or_afraid"
    elif scene.mood in _ANGRY or scene.leaning(enemy.id) <= 2 * HOSTILE:
        yield Wanted("attack", enemy.id), "attacks_whom_it_hates"
    yield Wanted("watch", enemy.id), "watches_enemies"


def _facing_others(scene: Scene) -> Iterator[tuple[Wanted, str]]:
    if scene.health < WEAK:
        yield Wanted("rest"), "rests_when_weak"
    if scene.mood in _AFRAID:
        yield Wanted("hide"), "hides_when_afraid"
    friends = [p for p in scene.nearest() if scene.leaning(p.id) >= FRIENDLY]
    if friends:
        yield (
            Wanted("approach" if scene.leaning(friends[0].id) >= 2 * FRIENDLY else "greet", friends[0].id),
            "meets_friends",
        )
    strangers = [p for p in scene.nearest() if p.kind == "player" and HOSTILE < scene.leaning(p.id) < FRIENDLY]
    if strangers:
        yield Wanted("watch", strangers[0].id), "watches_strangers"


def _alone(scene: Scene) -> Iterator[tuple[Wanted, str]]:
    if scene.role is not None and any(word in scene.role.lower() for word in _ON_DUTY):
        yield Wanted("patrol"), "patrols_on_duty"


def _worst(scene: Scene) -> Present | None:
    """Whom it hates most of those that are there; the first by id among equals."""
    enemies = [p for p in scene.nearest() if scene.leaning(p.id) <= HOSTILE]
    return min(enemies, key=lambda p: (scene.leaning(p.id), p.id), default=None)


def among(line: str, choices: Sequence[str]) -> str | None:
    """The choice that means this line: the line itself, its first word alone, or that word with more where it needs nobody else."""
    kind, _, target = line.partition(" ")
    for meant in (line, kind):
        found = next((c for c in choices if c.casefold() == meant.casefold()), None)
        if found is not None:
            return found
    if target or kind not in ALONE:
        return None
    return next((c for c in choices if c.casefold().split(" ", 1)[0] == kind.casefold()), None)
