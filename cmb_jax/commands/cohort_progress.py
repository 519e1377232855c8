"""Progress of a run over many scans on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib

from cmb_jax import progress
from cmb_jax.bids_app.outcome import Outcome, Status
from cmb_jax.commands.common import stopwatch


def shown_progress() -> contextlib.AbstractContextManager[Bar | Lines]:
    """A bar with the time left where stderr is a terminal; otherwise lines, which log files can hold."""
    return Bar() if progress.on_terminal() else contextlib.nullcontext(Lines())


class Lines:
    """A line for everything that is done."""

    def __init__(self) -> None:
        self.say = stopwatch()
        self._scans = self._ended = 0

    def start(self, scans: int) -> None:
        """Remember how many there are."""
        self._scans = scans

    def step(self, outcome: Outcome) -> None:
        """Count."""
        self._ended += 1
        self.say(f"{self._ended} of {self._scans} scans: {outcome.name}: {outcome.status.value}")


class Bar:
    """A bar; scans that do not end well get a line above it. A context, so that the bar is closed."""

    def __init__(self) -> None:
        self._bar = progress.Bar("scans", shown=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def start(self, scans: int) -> None:
        """Show the bar."""
        self._bar = progress.Bar("scans", scans).__enter__()

    def say(self, text: str) -> None:
        """Only what comes between scans is shown: those under way would crowd out the bar."""
        if not text.startswith(" "):
            progress.tell(text)

    def step(self, outcome: Outcome) -> None:
        """One further."""
        self._bar.update()
        if outcome.status in (Status.FAILED, Status.STALE):
            progress.tell(f"{outcome.name}: {outcome.status.value}: {outcome.reason}")
