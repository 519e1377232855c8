"""Rows of the comparison, for the terminal and for JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.turns import Measured, SideResult

COLUMNS = ("case", "against", "device", "ours", "other", "ratio", "ours MB", "other MB", "of peak")
EXPLAINED = (
    "Times: median (least to most) of {repeats} repeats. Ratio: ours over other, below 1 we are faster.\n"
    "MB: most resident memory during the repeats less that of the imported libraries; on a GPU, its memory.\n"
    "Of peak: convolutions' operations over our time and over the rate of a float32 matrix product ({peak})."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One case."""

    measured: Measured
    fraction_of_peak: float | None

    @classmethod
    def of(cls, measured: Measured, peak_gflop_per_s: float | None) -> Row:
        """The row, with the share of the peak where the case counts its operations."""
        gflop, seconds = measured.ours.gflop, measured.ours.median_s
        known = gflop is not None and seconds is not None and peak_gflop_per_s is not None
        share = gflop / seconds / peak_gflop_per_s if known else None  # type: ignore[operator]
        return cls(measured=measured, fraction_of_peak=share)

    def failures(self) -> list[str]:
        """One line for each side that failed; a peer that is not installed is none."""
        sides = (("ours", self.measured.ours), (self.measured.case.other_name, self.measured.other))
        return [
            f"{self.measured.case.name}, {name}: {side.note}"
            for name, side in sides
            if side.note.startswith("failed")
        ]

    def as_json(self) -> dict[str, Any]:
        """All fields, null where there is no figure."""
        measured = self.measured
        return {
            "case": measured.case.name,
            "about": measured.case.about,
            "against": measured.case.other_name,
            "device": measured.device,
            "keep_memory": measured.case.keep_memory,
            "precision": measured.case.options.get("precision"),
            "ours_s": measured.ours.median_s,
            "other_s": measured.other.median_s,
            "ratio": measured.ratio,
            "ours_peak_mb": measured.ours.peak_mb,
            "other_peak_mb": measured.other.peak_mb,
            "fraction_of_peak": self.fraction_of_peak,
            **_side_json("ours", measured.ours),
            **_side_json("other", measured.other),
        }

    def cells(self) -> tuple[str, ...]:
        """As in `COLUMNS`."""
        measured = self.measured
        return (
            measured.case.name,
            measured.case.other_name,
            measured.device,
            time_cell(measured.ours),
            time_cell(measured.other),
            _number(measured.ratio, ".3g"),
            _number(measured.ours.peak_mb, ".0f"),
            _number(measured.other.peak_mb, ".0f"),
            _number(self.fraction_of_peak, ".0%"),
        )


def rows_table(rows: Sequence[Row], peak_gflop_per_s: float | None) -> str:
    """The table with what its columns mean and how each side was run."""
    repeats = max((len(row.measured.ours.seconds) for row in rows), default=0)
    rate = "not measured" if peak_gflop_per_s is None else f"{peak_gflop_per_s:.0f} GFLOP/s"
    notes = [
        f"  {row.measured.case.name}, {name}: {side.note}"
        for row in rows
        for name, side in (("ours", row.measured.ours), (row.measured.case.other_name, row.measured.other))
        if side.seconds and side.note
    ]
    return "\n".join(
        [
            aligned(COLUMNS, [row.cells() for row in rows]),
            EXPLAINED.format(repeats=repeats, peak=rate),
            *notes,
        ]
    )


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def time_cell(side: SideResult) -> str:
    """Median with spread, or why there is none; a failure is told in full at the end of the command."""
    if side.median_s is None:
        return f"unmeasured: {textwrap.shorten(side.note, 60, placeholder=' ...')}"
    return f"{seconds(side.median_s)} ({seconds(min(side.seconds))} to {seconds(max(side.seconds))})"


def seconds(value: float) -> str:
    """Three figures with a unit."""
    return f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.3g} ms"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _side_json(name: str, side: SideResult) -> dict[str, Any]:
    return {
        f"{name}_min_s": min(side.seconds, default=None),
        f"{name}_max_s": max(side.seconds, default=None),
        f"{name}_repeats_s": list(side.seconds),
        f"{name}_process_peak_mb": side.process_mb,
        f"{name}_lifetime_peak_mb": side.lifetime_mb,
        f"{name}_gflop": side.gflop,
        f"{name}_result": side.result,
        f"{name}_note": side.note,
    }
