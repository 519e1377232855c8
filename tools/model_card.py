"""The model card of weights (Mitchell et al. 2019, FAT*), every figure taken from files.

    python tools/model_card.py --weights small --eval "CMB-Phantom 2 test, easy=easy.json" \
        "CMB-Phantom 2 test, hard=hard.json" --out cmb_jax/weights/small.md

The files are those of `cmb-jax evaluate --out` on predictions of these weights; the training record and the
calibration are in the .json beside the weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import ALONE, GROUP_ORDER, UNKNOWN, WITH_PHASE
from cmb_jax.evaluation.subsets import ALL_SCANS
from cmb_jax.inference.bundle import (
    WeightsBundle,
    calibration_lines,
    estimate_of,
    load_bundle,
    operating_tables,
    read_weights_record,
    threshold_text,
)
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.phantom.settings import PROTOCOLS
from cmb_jax.report.evaluation import Table

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_BREAKDOWNS = {
    "size_mm": "By diameter as seen",
    "cnr": "By contrast-to-noise ratio",
    "zone": "By zone",
    "region": "By region",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One file of `cmb-jax evaluate`."""

    name: str
    content: dict[str, Any]

    @property
    def main(self) -> dict[str, Any]:
        """The figures of the headline rule."""
        return self.content["rules"][self.content["headline_rule"]]


def read_evaluation(argument: str) -> Evaluation:
    """NAME=FILE.json as typed.

    Raises:
        UserError: no name, or no file of `cmb-jax evaluate`.
    """
    name, separator, file = argument.rpartition("=")
    if not separator or not name:
        raise UserError(f"--eval {argument}: write NAME=FILE.json")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        evaluation = Evaluation(name=name, content=content)
        if "sensitivity" not in evaluation.main or "subsets" not in content:
            raise KeyError("sensitivity, subsets")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: is no file of cmb-jax evaluate ({type(error).__name__}); give its --out"
        ) from error
    return evaluation


def markdown(table: Table) -> str:
    """A table of a report as Markdown, its note below."""
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join("-" if cell is None else str(cell) for cell in row) for row in table.rows]
    text = "\n".join(f"| {line} |" for line in lines)
    return f"{text}\n\n{table.note}" if table.note else text


def key_statement(bundle: WeightsBundle, record: dict[str, Any], evaluations: list[Evaluation]) -> str:
    """What must not be missed, in one paragraph."""
    found = "; ".join(
        f"{each.name}: sensitivity {estimate_of(each.main['sensitivity'])} at "
        f"{estimate_of(each.main['fp_per_scan'], 2)} false positives per scan"
        for each in evaluations
    )
    use = record.get("use", "research use only")
    return (
        "**Research use only: not a medical device, not for diagnosis.** "
        f"`{bundle.path.stem}`: {use}. {found}."
    )


def results_table(evaluations: list[Evaluation]) -> Table:
    """Headline figures, a column an evaluation."""
    rows: list[tuple[str, ...]] = [
        ("scans", *(str(each.content["scans"]) for each in evaluations)),
        ("scans without microbleeds", *(str(each.content["scans_without_lesions"]) for each in evaluations)),
        ("microbleeds", *(str(each.content["lesions"]) for each in evaluations)),
        *(
            (f"microbleeds {size}", *(str(each.content["lesions_by_size"][size]) for each in evaluations))
            for size in evaluations[0].content["lesions_by_size"]
        ),
        (
            "microbleeds that no reader would see, ignored",
            *(str(each.content["lesions_ignored"]) for each in evaluations),
        ),
        *(
            (title, *(estimate_of(each.main[name], digits) for each in evaluations))
            for title, name, digits in (
                ("sensitivity", "sensitivity", 3),
                ("false positives per scan", "fp_per_scan", 2),
                ("precision", "precision", 3),
                ("F1", "f1", 3),
                ("average precision", "average_precision", 3),
            )
        ),
        *(
            (
                f"sensitivity at {rate:g} false positives per scan",
                *(_froc(each, rate) for each in evaluations),
            )
            for rate in RATES
        ),
        *(
            (f"right {place}, of the hits", *(_place(each, place) for each in evaluations))
            for place in ("zone", "region")
        ),
        ("expected calibration error, kept", *(_calibration_error(each) for each in evaluations)),
        ("the same of perfect probabilities, by chance", *(_chance_error(each) for each in evaluations)),
        (
            "ICC(2,1) of the counts",
            *(_number(each.content["count_agreement"]["icc"]) for each in evaluations),
        ),
    ]
    first = evaluations[0]
    interval = first.content["intervals"]
    return Table(
        title="Results",
        columns=("", *(each.name for each in evaluations)),
        rows=tuple(rows),
        note=f"Rule: {first.main['title']}. Reported: {first.content['operating_point']}. "
        f"False positives over {first.content['false_positive_denominator']}. In brackets: "
        f"95 % {interval['method']}, {interval['samples']} resamples.",
    )


def breakdown_table(by: str, evaluations: list[Evaluation]) -> Table:
    """Sensitivity by a property of the lesions."""
    groups: dict[str, dict[str, str]] = {}
    for each in evaluations:
        for group in each.content["breakdowns"].get(by, []):
            text = f"{estimate_of(group['sensitivity'])} of {group['lesions']}"
            groups.setdefault(group["group"], {})[each.name] = text
    return Table(
        title=_BREAKDOWNS[by],
        columns=("sensitivity", *(each.name for each in evaluations)),
        rows=tuple(
            (name.replace("_", " "), *(groups[name].get(each.name, "-") for each in evaluations))
            for name in (*GROUP_ORDER[by], UNKNOWN)
            if name in groups
        ),
    )


def protocol_table(evaluations: list[Evaluation]) -> Table | None:
    """Sensitivity and false positives by protocol; None if no evaluation knows protocols."""
    rows = [
        (each.name, part["scans_of"], *_part_cells(part))
        for each in evaluations
        for part in each.content["subsets"]
        if part["scans_of"] in PROTOCOLS
    ]
    columns = ("data", "protocol", *_PART_COLUMNS)
    return Table(title="By protocol", columns=columns, rows=tuple(rows)) if rows else None


def part_table(evaluations: list[Evaluation]) -> Table:
    """All figures by phase and size, with and without calcifications."""
    rows = [
        (each.name, part["scans_of"], part["size"], *_part_cells(part))
        for each in evaluations
        for part in each.content["subsets"]
        if part["scans_of"] in (ALL_SCANS, WITH_PHASE, ALONE)
    ]
    return Table(
        title="By phase and size",
        columns=("data", "scans", "size", *_PART_COLUMNS),
        rows=tuple(rows),
        note="Lesions of other sizes are ignored: never missed, and a detection on one is not a false "
        "positive. Calcifications left out: in scans without a phase, where nobody can tell them from "
        "microbleeds, a detection on one is not a false positive.",
    )


_PART_RATES = (0.5, 1.0)
_PART_COLUMNS = (
    "calcifications",
    "number",
    "microbleeds",
    "sensitivity",
    "false positives per scan",
    "average precision",
    *(f"sensitivity at {rate:g}" for rate in _PART_RATES),
)


def _part_cells(part: dict[str, Any]) -> tuple[str, ...]:
    at = {point["fp_per_scan"]: estimate_of(point["sensitivity"]) for point in part["froc"]}
    return (
        part["calcifications"],
        str(part["scans"]),
        str(part["lesions"]),
        estimate_of(part["sensitivity"]),
        estimate_of(part["fp_per_scan"], 2),
        estimate_of(part["average_precision"]),
        *(at[rate] for rate in _PART_RATES),
    )


def mimic_table(evaluations: list[Evaluation]) -> Table | None:
    """What the false positives lie on; None if no evaluation knows mimics."""
    found = {
        each.name: {group["group"]: group for group in each.content["false_positives_by_mimic"]}
        for each in evaluations
    }
    names = list(dict.fromkeys(name for groups in found.values() for name in groups))
    rows = tuple(
        (
            name.replace("_", " "),
            *(
                f"{groups[name]['count']}, per scan {estimate_of(groups[name]['per_scan'], 2)}"
                if name in groups
                else "0"
                for groups in found.values()
            ),
        )
        for name in names
    )
    return Table(title="", columns=("false positives on", *found), rows=rows) if rows else None


def card(bundle: WeightsBundle, record: dict[str, Any], evaluations: list[Evaluation]) -> str:
    """The whole card as Markdown."""
    config = bundle.config
    calibration, magnitude = calibration_lines(bundle, record), record.get("magnitude_alone")
    protocols, mimics = protocol_table(evaluations), mimic_table(evaluations)
    breakdowns = [breakdown_table(by, evaluations) for by in _BREAKDOWNS]
    parts = [
        f"# Model card: {bundle.path.stem}",
        key_statement(bundle, record, evaluations),
        "Written by `tools/model_card.py` from the weights' record and from files of `cmb-jax evaluate`.",
        "## Model details",
        _bullets(
            f"Detector of cerebral microbleeds in susceptibility MRI: 3D U-Net, "
            f"{'feature fusion, ' if config.model.use_fusion else ''}region proposals"
            f"{', hard sample prototypes in training' if config.model.use_prototypes else ''} "
            "(Kim et al. 2023)",
            f"file `{bundle.path.name}`, sha256 `{bundle.sha256}`",
            f"trained {record.get('date', '(date not recorded)')} with cmb_jax {record.get('version', '?')}: "
            f"{record.get('steps', '?')} steps, {record.get('patches', '?')} patches, "
            f"{record.get('devices', 'devices not recorded')}{_started_from(record)}",
            f"working grid (z, y, x) {' x '.join(f'{edge:g}' for edge in config.data.spacing_mm)} mm; input "
            "SWI or T2*-weighted magnitude, and phase if there is one",
            "license: Apache-2.0",
        ),
        "## Intended use",
        _bullets(
            "research: finding candidates for microbleeds that a reader looks at; comparing methods",
            "SWI or T2*-weighted images of the whole head of adults, better with the phase",
        ),
        "## Out of scope",
        _bullets(
            "diagnosis, treatment, eligibility for drugs or trials, or any decision about a patient",
            "use without a reader: counts and places are proposals",
            "children, other organs, other contrasts, quantitative maps (QSM) in place of SWI",
            "telling that there are no microbleeds: an empty list proves nothing",
        ),
        "## Training data",
        _bullets(
            str(record.get("training_data", "not recorded")),
            f"validation: {record.get('validation_data', 'not recorded')}",
            f"as configured: protocols {', '.join(config.phantom.protocols)}; tiers "
            f"{', '.join(config.phantom.tiers)}; anatomies {', '.join(config.phantom.anatomies)}",
        ),
        "## Evaluation data",
        _bullets(
            *(
                f"{each.name}: {each.content['scans']} scans, {each.content['scans_without_lesions']} of "
                f"them without microbleeds, {each.content['lesions']} microbleeds"
                for each in evaluations
            )
        ),
        "## Metrics",
        _bullets(
            "a hit: center within 3 mm of a true one, one to one; false positives over all scans",
            "microbleeds that no reader would see are ignored: never missed, and a detection on one is no "
            "false positive",
            "free-response ROC: sensitivity against false positives per scan over all thresholds",
            "intervals resample scans, not lesions; those of groups of lesions are Wilson's",
            "expected calibration error: mean over bins of |probability - share of true ones| "
            "(Guo et al. 2017)",
        ),
        "## Operating points and calibration",
        _bullets(
            f"kept: score >= {threshold_text(config.inference, 'score_threshold')}: "
            f"{record.get('operating_point', 'how it was chosen is not recorded')}",
            *([f"without a phase: {magnitude['operating_point']}"] if magnitude else []),
            f"definite: score >= {threshold_text(config.inference, 'definite_threshold')}",
            f"calibration: {calibration[0]}",
            *calibration[1:],
        ),
        *(part for table in operating_tables(record) for part in (f"### {table.title}", markdown(table))),
        "## Results",
        markdown(results_table(evaluations)),
        "### By phase and size",
        markdown(part_table(evaluations)),
        *(["### By protocol", markdown(protocols)] if protocols else []),
        *(part for table in breakdowns if table.rows for part in (f"### {table.title}", markdown(table))),
        *(["### False positives by mimic", markdown(mimics)] if mimics else []),
        "## Ethical considerations",
        _bullets(
            "a missed or an invented microbleed could mislead whoever trusted the list: a reader must look",
            "how it does by age, sex, ethnicity, scanner maker or disease is not known",
            "the weights hold no data of persons beyond what the training data above names",
        ),
        "## Caveats",
        _bullets(
            "simulated subjects are not patients: no figure on them says how the detector does on patients",
            "a probability holds for scans like those of the calibration, with as many microbleeds and "
            "mimics; on others the order of the scores may hold while the probabilities do not",
            "these weights come of one training run: how much another would differ is not measured",
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _froc(evaluation: Evaluation, rate: float) -> str:
    points = [p for p in evaluation.main["froc"] if p["fp_per_scan"] == rate]
    return estimate_of(points[0]["sensitivity"]) if points else "-"


def _place(evaluation: Evaluation, name: str) -> str:
    places = evaluation.content["place_agreement"]
    return "-" if places is None else estimate_of(places[name])


def _started_from(record: dict[str, Any]) -> str:
    """Weights that the training went on from."""
    start = record.get("started_from")
    if start is None:
        return ""
    return f", from weights `{start['name']}` with sha256 `{start['sha256'][:12]}...`"


def _calibration_error(evaluation: Evaluation) -> str:
    found = evaluation.content.get("calibration")
    return "-" if found is None else estimate_of(found["ece_equal_mass"])


def _chance_error(evaluation: Evaluation) -> str:
    found = evaluation.content.get("calibration")
    return _number(None if found is None else found["by_chance_equal_mass"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def main(weights: str, eval: tuple[str, ...], out: Path, overwrite: bool = False) -> None:
    """Write the model card of weights.

    Args:
        weights: name of bundled weights, or a .safetensors file.
        eval: NAME=FILE.json, each a file of `cmb-jax evaluate` on predictions of these weights.
        out: Markdown file to write.
        overwrite: replace the file if it exists.
    """
    if not eval:
        raise UserError("--eval: give NAME=FILE.json at least once")
    bundle = load_bundle(weights)
    record = read_weights_record(bundle.record_path) or {}
    text = card(bundle, record, [read_evaluation(each) for each in eval])
    atomic_write_text(out, text, overwrite=overwrite)
    print(f"written: {out}")


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main, description=__doc__))
