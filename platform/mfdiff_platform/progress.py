"""What a user sees while long work runs: a live line per task, on stderr only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

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
PLAIN_INTERVAL_S, POST_INTERVAL_S = 10.0, 1.0


@dataclass(frozen=True)
class Post:
    """How far a task of another process is."""

    title: str
    done: int
    total: int
    note: str = ""


class Task:
    """One piece of work: `update` says how far it is and in what state."""

    def __init__(self, title: str, total: int, bar: _Bar | None) -> None:
        title = escape(title)  # names of files and studies are no markup
        self._title, self._bar = title, bar
        self.total = total
        self._id: TaskID | None = bar.add_task(title, total=total, note="") if bar else None
        self._started = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._note, self._done = "", 0

    def update(self, done: int, note: str = "") -> None:
        """Show ``done`` of the total and a short note such as the current loss."""
        self._note, self._done = escape(note) or self._note, done
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

    def note(self, text: str) -> None:
        """Another note, no progress."""
        self.update(self._done, text)

    def at_work(self, posts: Sequence[Post]) -> None:
        """Show what workers are at: under the bar, or as the note where there is no terminal."""
        rows = [(post.title, f"{post.done}/{post.total}", post.note) for post in posts]
        self.show_table(("at work", "", ""), rows)
        if self._bar is None:
            self._note = escape("; ".join(" ".join(row).rstrip() for row in rows))
            self.update(self._done)

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


class _Posted(Task):
    """A task that nobody sees here: a file says how far it is."""

    def __init__(self, title: str, total: int, path: Path) -> None:
        super().__init__(title, total, None)
        self._plain_title, self._path = title, path
        self._write()

    def update(self, done: int, note: str = "") -> None:
        self._done, self._note = done, note or self._note
        if time.monotonic() - self._printed >= POST_INTERVAL_S:
            self._write()

    def _write(self) -> None:
        """Write the post; a full disk or a slow share is no reason to stop the work."""
        post = Post(self._plain_title, self._done, self.total, self._note)
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(post)))
            temporary.replace(self._path)
        self._printed = time.monotonic()

    def close(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


_post: Path | None = None


@contextmanager
def posting(path: Path) -> Iterator[None]:
    """In the block tasks are written to the file ``path`` for `posted` instead of shown."""
    global _post
    before, _post = _post, path
    try:
        yield
    finally:
        _post = before


def posted(path: Path) -> Post | None:
    """What a worker that is `posting` is at; None between its tasks, or if it cannot be read."""
    try:
        return Post(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def task(title: str, total: int) -> Iterator[Task]:
    """Show a task while the block runs; without a terminal, a plain line now and then."""
    if _post is not None:
        silent = _Posted(title, total, _post)
        try:
            yield silent
        finally:
            silent.close()
        return
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
