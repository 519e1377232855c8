"""The results in docs/comparison.md from the runs that there are; the others are called not yet run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.plan import ALL, FEW, LEARN_FROM_FEW, PRETRAINED, Run
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import ALONE, WITH_PHASE
from cmb_jax.evaluation.comparison import compare
from cmb_jax.evaluation.evaluate import evaluate
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.read import find_predictions, find_truth
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import Estimate, estimate_text
from cmb_jax.evaluation.subsets import ALL_SCANS, ALL_SIZES, COUNTED, LEFT_OUT, READERS_SIZE, SMALL
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.progress import track

BEGIN, END = "<!-- results -->", "<!-- /results -->"
NOT_RUN = "not yet run"
REFERENCE = "base"
RATES = (0.5, 1.0, 2.0, 4.0)
RULE = "center3"
_MIMICS = 6  # kinds of false positives that are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished run."""

    run: Run
    facts: dict[str, Any]  # result.json
    metrics: dict[str, Any]  # of `cmb-jax evaluate`
    found: Sequence[SubjectDetections]

    @property
    def curve(self) -> dict[str, Any]:
        """Figures by the headline rule."""
        rule: dict[str, Any] = self.metrics["rules"][RULE]
        return rule

    def subset(
        self, scans: str, size: str = ALL_SIZES, calcifications: str = COUNTED
    ) -> dict[str, Any] | None:
        """Figures of a part of scans and lesions."""
        wanted = (scans, size, calcifications)
        each: dict[str, Any]
        for each in self.metrics["subsets"]:
            if (each["scans_of"], each["size"], each["calcifications"]) == wanted:
                return each
        return None


def write_page(work: Path, truth_folder: Path, runs: Sequence[Run], page: Path) -> None:
    """Evaluate what has not been evaluated, and write the page.

    Raises:
        UserError: no page with a part to fill in.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such page")
    sources = find_truth(truth_folder) if truth_folder.is_dir() else []
    # centers alone: the rule of the page needs no voxels
    truths = [dataclasses.replace(each.read(), volume=None, mimics=None) for each in track(sources, "truth")]
    outcomes = [outcome(run, work, truth_folder, truths) for run in track(runs, "runs")]
    done = {run: each for run, each in zip(runs, outcomes, strict=True) if each is not None}
    parts = [state(runs, done, truths)]
    main = [run for run in runs if run.subjects == ALL or len({r.subjects for r in runs}) == 1]
    for budget, seed in dict.fromkeys((run.budget, run.seed) for run in main):
        part = [run for run in main if (run.budget, run.seed) == (budget, seed)]
        parts.append(f"## {budget} of CPU time, seed {seed}")
        if done.keys().isdisjoint(part):
            parts.append(f"All {NOT_RUN}: {', '.join(f'`{run.contestant}`' for run in part)}.")
        else:
            parts.extend(budget_tables(part, done, truths))
    parts.append(few_subjects(runs, done))
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{page}: has no part between {BEGIN} and {END} to be filled in")
    content = "\n\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"])
    atomic_write_text(page, content, overwrite=True)
    print(f"written: {page} ({len(done)} of {len(runs)} runs)")


def outcome(run: Run, work: Path, truth_folder: Path, truths: Sequence[SubjectTruth]) -> Outcome | None:
    """What a run found, evaluated once; None if it is not done."""
    folder = run.folder(work)
    if not (folder / "result.json").exists():
        return None
    predictions = folder / "predictions"
    if not (folder / "metrics.json").exists():
        write_metrics(evaluate(predictions, truth_folder, RULE), folder / "metrics.json")
    found = find_predictions(predictions, [truth.subject for truth in truths])
    return Outcome(
        run=run,
        facts=json.loads((folder / "result.json").read_text()),
        metrics=json.loads((folder / "metrics.json").read_text()),
        found=[source.read() for source in found],
    )


def state(runs: Sequence[Run], done: dict[Run, Outcome], truths: Sequence[SubjectTruth]) -> str:
    """How much there is."""
    if not truths:
        return f"**None of {len(runs)} runs is done**, and the test scans are not made yet."
    lesions = sum(len(truth.centers_mm) for truth in truths)
    phase = sum(bool(truth.has_phase) for truth in truths)
    line = (
        f"**{len(done)} of {len(runs)} runs are done.** Test: {len(truths)} scans ({phase} with a phase), "
        f"{lesions} microbleeds."
    )
    if done:
        some = next(iter(done.values())).facts
        commits = sorted({str(each.facts["commit"]) for each in done.values()})
        versions = ", ".join(
            f"{name} {some[name]}"
            for name in ("jax", "torch", "monai", "nnunetv2", "scikit-learn")
            if some.get(name)
        )
        line += f" Commit {', '.join(commits)}; {some['cores']} cores of {some['cpu']}; {versions}."
    return line


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    """A stored estimate."""
    if estimate is None or estimate["value"] is None:
        return "-"
    values = {name: float("nan") if value is None else value for name, value in estimate.items()}
    return estimate_text(Estimate(**values), digits)


def number(value: Any, form: str = ",.0f") -> str:
    """A figure or a dash."""
    return "-" if value is None else format(value, form)


def budget_tables(runs: Sequence[Run], done: dict[Run, Outcome], truths: Sequence[SubjectTruth]) -> list[str]:
    """What was found, where, and what it cost, with one budget and seed."""
    reference = next((done[run] for run in runs if run.contestant == REFERENCE and run in done), None)

    def rows(width: int, cells: Any) -> list[list[str]]:
        return [
            [f"`{run.contestant}`", *(cells(done[run]) if run in done else [NOT_RUN] * width)] for run in runs
        ]

    def quality(each: Outcome) -> list[str]:
        rates = {point["fp_per_scan"]: point["sensitivity"] for point in each.curve["froc"]}
        return [
            text(each.curve["average_precision"]),
            *(text(rates[rate]) for rate in RATES),
            *difference(each, reference, truths),
        ]

    def parts(each: Outcome) -> list[str]:
        wanted = (
            (WITH_PHASE, ALL_SIZES, COUNTED),
            (ALONE, ALL_SIZES, COUNTED),
            (ALONE, ALL_SIZES, LEFT_OUT),
            (ALL_SCANS, SMALL, COUNTED),
            (ALL_SCANS, READERS_SIZE, COUNTED),
        )
        found = [each.subset(*part) for part in wanted]
        return [text(None if part is None else part["average_precision"]) for part in found]

    def point(each: Outcome) -> list[str]:
        by_mimic = sorted(each.metrics["false_positives_by_mimic"], key=lambda group: -group["count"])
        calibration = each.metrics["calibration"]
        return [
            text(each.curve["sensitivity"]),
            text(each.curve["fp_per_scan"], 2),
            text(None if calibration is None else calibration["ece_equal_mass"]),
            ", ".join(f"{group['name'].replace('_', ' ')} {group['count']}" for group in by_mimic[:_MIMICS])
            or "none",
        ]

    def costs(each: Outcome) -> list[str]:
        facts = each.facts
        return [
            number(facts["cpu_s"]),
            number(facts.get("steps")),
            number(facts.get("parameters")),
            number(facts["peak_mb"]),
            number(facts["scan_cpu_s"], ".1f"),
            number(facts["inference_peak_mb"]),
        ]

    at_rates = [f"sensitivity at {rate:g} FP" for rate in RATES]
    tables = [
        (["contestant", "AP", *at_rates, f"AP less that of `{REFERENCE}`", "p"], quality, ""),
        (
            [
                *("contestant", "AP with phase", "AP without", "without, calcifications left out"),
                *(f"AP {SMALL}", f"AP {READERS_SIZE}"),
            ],
            parts,
            "",
        ),
        (
            ["contestant", "sensitivity", "FP per scan", "calibration error", "false positives on"],
            point,
            "At the operating point:",
        ),
        (
            [
                *("contestant", "CPU s of training", "steps", "parameters", "MB in training"),
                *("CPU s per scan", "MB at inference"),
            ],
            costs,
            "Cost. Steps of `classical` are subjects, its parameters nodes of trees; `twin` and "
            "`nndetection` are run on scans by our program. Memory is that of the whole process at its "
            "peak:",
        ),
    ]
    found = []
    for header, cells, words in tables:
        found += [words] if words else []
        found.append(markdown(header, rows(len(header) - 1, cells)))
    return found


def difference(each: Outcome, reference: Outcome | None, truths: Sequence[SubjectTruth]) -> list[str]:
    """Average precision less that of the reference, and p, paired over scans."""
    if reference is None:
        return [NOT_RUN, NOT_RUN]
    if each is reference or len(truths) < 2:
        return ["-", "-"]
    names = (each.run.contestant, reference.run.contestant)
    metric = compare(names, each.found, reference.found, truths, rule=RULE).metrics[-1]
    return [estimate_text(metric.paired.difference), f"{metric.paired.p_value:.3f}"]


def few_subjects(runs: Sequence[Run], done: dict[Run, Outcome]) -> str:
    """Average precision by number of training subjects."""
    counts = (*FEW, ALL)
    budgets = dict.fromkeys(run.budget for run in runs if run.subjects in FEW) or {"1h": None}
    rows = []
    for budget in budgets:
        for name in (*LEARN_FROM_FEW, PRETRAINED):
            cells = []
            for count in counts:
                run = Run(contestant=name, budget=budget, seed=0, subjects=count)
                planned = run in runs
                cells.append(
                    text(done[run].curve["average_precision"]) if run in done else NOT_RUN if planned else "-"
                )
            rows.append([f"`{name}`, {budget}", *cells])
    return (
        "## From few subjects\n\nAverage precision, seed 0; the fewer subjects are among the more. A dash: "
        "not in the "
        "plan.\n\n" + markdown(["contestant, budget", *(f"{count} subjects" for count in counts)], rows)
    )
