"""A progress display on the terminal, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Shows the current stage; a bar where the number of steps is known."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, name: str, steps: int | None = None) -> None:
        """Replace the line of the last stage by one for this."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=steps, what="")

    def step(self, what: str = "") -> None:
        """Advance the bar; `what` is shown beside it."""
        if self._task is not None:
            self._bars.update(self._task, advance=1, what=what[:40])


@contextmanager
def watch() -> Iterator[Display]:
    """A display that disappears when the work is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[what]}", style="dim"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bars:
        yield Display(bars)
