"""What a user sees while long work runs: a live line per task, on stderr only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

MOST_ROWS = 12

console = Console(stderr=True, highlight=False)
PLAIN_INTERVAL_S = 10.0


class Task:
    """One piece of work: `update` says how far it is and in what state."""

    def __init__(self, title: str, total: int, bar: _Bar | None) -> None:
        title = escape(title)  # names of files and studies are no markup
        self._title, self._bar = title, bar
        self.total = total
        self._id: TaskID | None = bar.add_task(title, total=total, note="") if bar else None
        self._started = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """Show ``done`` of the total and a short note such as the current loss."""
        self._note = escape(note) or self._note
        self._first = self._first or (time.monotonic(), done)
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=done, note=self._note)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            told = f"{self._title}: {done}/{self.total}{self._time_left(done, *self._first)}"
            console.print(f"  {told} {self._note}", soft_wrap=True)
            self._printed = time.monotonic()

    def _time_left(self, done: int, since: float, began_at: int) -> str:
        """Time left at the pace since the first update, which may be that of a resumed run."""
        gained = done - began_at
        if gained <= 0:
            return ""
        seconds = (self.total - done) * (time.monotonic() - since) / gained
        return f", {timedelta(seconds=round(seconds))} left"

    def progress(self, done: int, total: int) -> None:
        """Show ``done`` of a total that was not known at the start."""
        self.total = total
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, total=total)
        self.update(done)

    def show_table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table under the bar, on a terminal only."""
        if self._bar is None:
            return
        table = Table(*head, box=None, pad_edge=True, header_style="dim")
        for row in rows[:MOST_ROWS]:
            table.add_row(*map(escape, row))
        if len(rows) > MOST_ROWS:
            table.add_row(f"and {len(rows) - MOST_ROWS} more")
        self._bar.below = table if rows else None

    def close(self) -> None:
        """Leave one finished line."""
        seconds = time.monotonic() - self._started
        if self._bar is not None and self._id is not None:
            self._bar.remove_task(self._id)
        console.print(
            f"[green]✓[/] {self._title} [dim]{seconds:.0f} s {self._note}[/]", soft_wrap=True
        )


class _Bar(Progress):
    """A bar with room for a table."""

    below: Table | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


@contextmanager
def task(title: str, total: int) -> Iterator[Task]:
    """Show a task while the block runs; without a terminal, a plain line now and then."""
    if not console.is_terminal:
        console.print(f"  {escape(title)} ...", soft_wrap=True)
        shown = Task(title, total, None)
        yield shown
        shown.close()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with _Bar(*columns, console=console, transient=True) as bar:
        shown = Task(title, total, bar)
        yield shown
        shown.close()


def say(text: str, mark: str = "") -> None:
    """One line for the user, on stderr; ``mark`` stands before it and may be styled."""
    console.print(f"{mark}{escape(text)}", soft_wrap=True)
