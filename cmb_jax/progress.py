"""Progress on stderr: bars on a terminal, now and then a line elsewhere, nothing where it is not wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 30.0

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether progress is kept back, in this process."""
    global _quiet
    _quiet = quiet


def on_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty()


def tell(text: str) -> None:
    """A line of progress, above the bars if there are any; nothing with `set_quiet`."""
    if _quiet:
        return
    if _Screen.progress is not None:
        _Screen.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


class _Screen:
    """The one display that all bars of a process stand in: a terminal has room for no more."""

    progress: Progress | None = None
    bars = 0


class Bar:
    """How far something is; a context manager.

    Args:
      what: beside the bar.
      total: how many steps there are, None if that is not known.
      done: how many were done before.
      shown: False for none.
    """

    def __init__(self, what: str, total: int | None = None, *, done: int = 0, shown: bool = True):
        self._what, self._total, self._done, self._note = what, total, done, ""
        self._shown = shown and not _quiet
        self._on_terminal = self._shown and on_terminal()
        self._said = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._on_terminal:
            return self
        if _Screen.progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            _Screen.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True, force_terminal=True),
                transient=True,
            )
            _Screen.progress.start()
        _Screen.bars += 1
        self._task = _Screen.progress.add_task(self._what, total=self._total, completed=self._done, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is None or _Screen.progress is None:
            return
        _Screen.bars -= 1
        if _Screen.bars:
            _Screen.progress.remove_task(self._task)
        else:
            _Screen.progress.stop()
            _Screen.progress = None

    def update(self, steps: int = 1, *, what: str | None = None, note: str | None = None) -> None:
        """So many steps further; other words beside the bar, and behind it."""
        self._done += steps
        self._what = self._what if what is None else what
        self._note = self._note if note is None else note
        if self._task is not None and _Screen.progress is not None:
            _Screen.progress.update(self._task, description=self._what, completed=self._done, note=self._note)
        elif self._shown and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            total = "" if self._total is None else f" of {self._total}"
            tell(f"{self._what}: {self._done}{total}{self._note and f' ({self._note})'}")


def track(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar; `total` where they have no length."""
    sized: Any = items
    count = len(sized) if total is None and hasattr(items, "__len__") else total
    with Bar(what, count) as bar:
        for item in items:
            yield item
            bar.update()


Say = Callable[[str], None]
"""Callback for progress messages."""


def stopwatch() -> Say:
    """A callback that prints progress messages on stderr with the seconds since now."""
    tick = time.perf_counter()

    def say(text: str) -> None:
        tell(f"[{time.perf_counter() - tick:6.1f} s] {text}")

    return say
