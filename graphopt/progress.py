"""How long work tells what it is doing, without knowing who watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about stages and steps within them."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """A stage begins; `steps` is how many steps it has, if that is known."""

    def step(self, what: str = "") -> None:
        """One step of the current stage is done."""


class Silent:
    """Watches nothing."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """Ignore."""

    def step(self, what: str = "") -> None:
        """Ignore."""
