"""The table of aims at the head of docs/results.md, every figure taken from files of `cmb-jax evaluate`.

    python tools/results_table.py --split test --base E.json H.json --small E.json H.json \
        --into docs/results.md

Each pair is of the easy and the hard tier. The text between the markers of the page is replaced.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import tyro

from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import ALONE, WITH_PHASE
from cmb_jax.evaluation.subsets import ALL_SIZES, COUNTED, LEFT_OUT, READERS_SIZE
from cmb_jax.inference.bundle import estimate_of
from cmb_jax.io.atomic import atomic_write_text

BEGIN, END = "<!-- results_table: begin -->", "<!-- results_table: end -->"
Content = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Files to read and page to fill."""

    base: tuple[Path, Path]
    """Evaluations of `base`: easy, hard."""
    small: tuple[Path, Path]
    """Evaluations of `small`: easy, hard."""
    split: Literal["validation", "test"]
    """What the evaluations are of."""
    into: Path
    """Page with the markers."""


def part(content: Content, scans_of: str, size: str = ALL_SIZES, calcifications: str = COUNTED) -> Content:
    """One part of an evaluation."""
    wanted = {"scans_of": scans_of, "size": size, "calcifications": calcifications}
    return next(p for p in content["subsets"] if all(p[key] == value for key, value in wanted.items()))


def at(part: Content, *rates: float) -> str:
    """Sensitivity at false positives per scan."""
    known = {point["fp_per_scan"]: estimate_of(point["sensitivity"]) for point in part["froc"]}
    return "; ".join(known[rate] for rate in rates)


def rejected(content: Content) -> str:
    """True microbleeds lost, and false positives removed, by the rules of place."""
    rules = content["rejection_by_rule"]
    lost, removed = (sum(rule[name] for rule in rules) for name in ("true_lost", "false_removed"))
    left = content["rules"][content["headline_rule"]]["fp"]
    return f"{lost} of {content['lesions']} lost, {removed} of {removed + left} removed"


def cells(easy: Content, hard: Content) -> list[str]:
    """The column of one detector, in the order of `LINES`."""
    errors = [each["calibration"] for each in (easy, hard)]
    return [
        at(part(hard, WITH_PHASE, READERS_SIZE), 0.5),
        at(part(hard, WITH_PHASE), 0.5, 1.0),
        at(part(hard, ALONE), 1.0),
        at(part(hard, ALONE, calcifications=LEFT_OUT), 1.0),
        "; ".join(at(part(easy, name), 0.25) for name in ("iso05", "iso08")),
        "; ".join("-" if each is None else estimate_of(each["ece_equal_mass"]) for each in errors),
        "; ".join(estimate_of(each["place_agreement"]["zone"]) for each in (easy, hard)),
        "; ".join(estimate_of(each["place_agreement"]["region"]) for each in (easy, hard)),
        "; ".join(map(rejected, (easy, hard))),
        "; ".join(
            f"{estimate_of(each['rules'][each['headline_rule']]['sensitivity'])} at "
            f"{estimate_of(each['rules'][each['headline_rule']]['fp_per_scan'], 2)}"
            for each in (easy, hard)
        ),
    ]


LINES = (
    ("hard, with phase, microbleeds of 2 to 10 mm: sensitivity at 0.5 FP per scan", "0.95"),
    ("hard, with phase, all sizes: sensitivity at 0.5; 1", "0.85; 0.90"),
    ("hard, magnitude alone, all sizes: sensitivity at 1", "0.05 below the observer"),
    ("the same, detections on calcifications not counted", ""),
    ("easy, `iso05`; `iso08`: sensitivity at 0.25", "0.98 at 0.3"),
    ("expected calibration error of what is reported: easy; hard", "at most 0.05"),
    ("right zone of the hits: easy; hard", "0.975"),
    ("right region of the hits: easy; hard", "0.93"),
    ("rejection by place, true microbleeds and false positives: easy; hard", "at most 0.5 %; a third"),
    ("all scans at the operating point, sensitivity at FP per scan: easy; hard", ""),
)


def table(split: str, base: tuple[Content, Content], small: tuple[Content, Content]) -> str:
    """The table as Markdown."""
    lines = [f"| {split} split of CMB-Phantom 2 | aim | `base` | `small` |", "|---|---|---|---|"]
    for (name, aim), *figures in zip(LINES, cells(*base), cells(*small), strict=True):
        lines.append(f"| {' | '.join((name, aim, *figures))} |")
    easy, hard = (
        f"{each['scans']} {name} scans, {each['lesions']} microbleeds that count"
        for name, each in zip(("easy", "hard"), base, strict=True)
    )
    interval = base[0]["intervals"]
    return "\n".join(lines) + (
        f"\n\n{easy}; {hard}. Whole pipeline with localization. Hit: center within 3 mm, one to one; false "
        f"positives over all scans; in brackets the 95 % interval ({interval['method']}, "
        f"{interval['samples']} resamples)."
    )


def main(arguments: Arguments) -> None:
    """Fill the page.

    Raises:
        UserError: the page has no markers.
    """
    base, small = (
        tuple(json.loads(path.read_text(encoding="utf-8")) for path in pair)
        for pair in (arguments.base, arguments.small)
    )
    page = arguments.into.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise UserError(f"{arguments.into.name}: put {BEGIN} and {END} where the table belongs")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    filled = table(arguments.split, (base[0], base[1]), (small[0], small[1]))
    text = f"{before}{BEGIN}\n\n{filled}\n\n{END}{after}"
    atomic_write_text(arguments.into, text, overwrite=True)


if __name__ == "__main__":
    run_cli(lambda: main(tyro.cli(Arguments)))
