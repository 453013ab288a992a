"""Parts of terminal tables: plain-text cells, a table without box lines, a bar.

Cells are `Text`, never markup, since names in a model may contain brackets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

WIDE = 110
"""Columns from which on tables show what they otherwise fold into a second line or leave out."""


def text(content: str, style: str = "") -> Text:
    """A cell; what is too long for its column is continued on the next line."""
    from rich.text import Text

    return Text(content, style, overflow="fold")


def stacked(first: Text, *below: Text) -> Group:
    """A cell of several lines, the ones below the first indented."""
    from rich.console import Group
    from rich.padding import Padding

    return Group(first, *(Padding(line, (0, 0, 0, 2)) for line in below))


def table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    """A table with a rule below its header and no other lines. Numbers (right) never wrap."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for header, justify in columns:
        made.add_column(header, justify=justify, no_wrap=justify == "right", overflow="fold")
    return made


def bar(ratio: float | None, width: int, console: Console) -> Text:
    """What is left of the old value, drawn; nothing where it is not known."""
    if ratio is None:
        return text("")
    full, empty = ("#", ".") if console.options.ascii_only else ("\u2588", "\u2591")
    filled = max(0, min(width, round(ratio * width)))
    rest = text(empty * (width - filled), "dim")
    return text(full * filled, "cyan" if ratio <= 1 else "yellow") + rest


def tone(before: float | None, after: float | None) -> str:
    """The style of a change: smaller is good."""
    if before is None or after is None or before == after:
        return "dim"
    return "green" if after < before else "yellow"
