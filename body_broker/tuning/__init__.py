"""Tuning: the studio's own key/value figures, with who changed what, when and why. Never the hub's settings or secrets."""

from body_broker.tuning.figures import Figure, Figures, Revision, Tuning, Wanted

__all__ = ["Figure", "Figures", "Revision", "Tuning", "Wanted"]
