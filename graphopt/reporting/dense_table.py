"""The table about `--dense`: what the cells of a map are worth, and what one pass costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.reporting import units
from graphopt.reporting.cells import WIDE, table, text
from graphopt.reporting.schema import DenseMaps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def dense_table(dense: DenseMaps, console: Console) -> Table:
    """One row for each picture: its maps, how far cells are off, one pass against all crops."""
    wide = console.width >= WIDE
    headers = ("picture", "map", "windows", "error", "worst", *(("top-1",) if wide else ()))
    made = table(*((header, "right") for header in (*headers, "one pass", "crops", "ratio")))
    for size in dense.sizes:
        agreement = (units.rate(size.top1_agreement),) if wide else ()
        made.add_row(
            _by(size.picture),
            text("\n".join(_by(shape[1:]) for shape in size.maps.values())),
            units.count(size.windows),
            units.error(size.relative_l2),
            units.error(size.worst_window),
            *agreement,
            units.micros(size.pass_us),
            units.micros(size.crops_us),
            text(units.percent(size.ratio), "green" if (size.ratio or 1) < 1 else "yellow"),
        )
    return made


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
