"""Training logs: one CSV row a log point, TensorBoard scalars, a progress bar."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from cmb_jax.io.tables import read_rows
from cmb_jax.progress import Bar, tell


class TrainLog:
    """Appends to `metrics.csv` and TensorBoard files in a run's folder; use as a context manager."""

    def __init__(self, folder: Path, total_steps: int, first_step: int):
        self._csv_path = folder / "metrics.csv"
        self._columns: list[str] = []
        if self._csv_path.exists():
            self._columns = next(iter(read_rows(self._csv_path, ",", "move the run's log away")), [])
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._bar = Bar("training", total_steps, done=first_step)

    def __enter__(self) -> TrainLog:
        self._bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._bar.__exit__()
        self._writer.close()

    def advance(self) -> None:
        """One step done."""
        self._bar.update()

    def message(self, text: str) -> None:
        """A line for people, above the bar."""
        tell(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write named values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        shown = [f"{name} {values[name]:.4g}" for name in ("loss", "voxels/s") if name in values]
        if shown:
            self._bar.update(0, note=", ".join(shown))
        self._append({"step": step, **values})

    def _append(self, row: Mapping[str, float]) -> None:
        unseen = [name for name in row if name not in self._columns]
        if unseen:
            self._widen(unseen)
        with self._csv_path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _widen(self, unseen: list[str]) -> None:
        """Rewrite the file with more columns: training and validation rows differ."""
        rows: list[dict[str, str]] = []
        if self._csv_path.exists():
            names, *lines = read_rows(self._csv_path, ",", "move the run's log away") or [[]]
            rows = [dict(zip(names, line, strict=False)) for line in lines]
        self._columns = self._columns + unseen
        temporary = self._csv_path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self._csv_path)
