"""What each part of the detector does: train a grid of variants and seeds, compare them, write a page."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import cmb_jax
from cmb_jax.config import Config
from cmb_jax.data.subjects import is_stored, subjects_in
from cmb_jax.devices import use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.evaluation.matching import CENTER3
from cmb_jax.io.atomic import atomic_write_text, sha256_file
from cmb_jax.progress import Say, stopwatch
from cmb_jax.report.evaluation import AblationContent, EmbeddingMap, Example, Table, render_ablation
from cmb_jax.report.plots import FrocLine
from cmb_jax.research import course, examples, findings
from cmb_jax.research.runs import Cost, Grid, Run, complete, cost_of, other_settings, runs_of
from cmb_jax.research.scores import (
    BAND_RATES,
    RunScores,
    Study,
    compare_variants,
    csv_text,
    markdown_text,
    score_run,
    study_tables,
)
from cmb_jax.training.run import OPERATING_FP_RATE
from cmb_jax.training.run_data import phantom_folders, phantom_subjects, training_data

TITLE = "Ablation: what each part of the detector does"
SAMPLES = 2000
LIBRARY_PATCHES = 144  # of training subjects, whose samples candidates are compared with
FALSE_EXPLAINED, FOUND_EXPLAINED = 4, 2


def prepared_set(name: str, folder: Path | None, grid: Grid, workdir: Path) -> findings.SubjectSet:
    """The subjects named "validation" or "test": from a folder, or else simulated and stored in the workdir.

    Raises:
        UserError: the folder has none, or none has a microbleed.
    """
    base = grid.variants[0].config
    subjects = phantom_subjects(base, workdir, name) if folder is None else subjects_in(folder)
    prepared = findings.subject_set(name, subjects, base.data.spacing_mm)
    if not any(len(truth.centers_mm) for truth in prepared.truths):
        raise UserError(f"no {name} subject has a microbleed, so there is nothing to measure")
    return prepared


def training_set(run: Run) -> findings.SubjectSet | None:
    """The subjects that a run was trained on; None if simulated ones are no longer stored."""
    config = run.config
    if config.data.index is not None:
        subjects = training_data(config, run.folder).training
    elif all(map(is_stored, phantom_folders(config, run.folder, "training"))):
        subjects = phantom_subjects(config, run.folder, "training")
    else:
        return None
    return findings.subject_set("training", subjects, config.data.spacing_mm)


def with_one_cache(grid: Grid, workdir: Path) -> Grid:
    """The grid with one shared cache of simulated subjects, so that not every run simulates its own."""
    variants = []
    for variant in grid.variants:
        phantom = variant.config.phantom
        phantom = dataclasses.replace(phantom, cache_dir=phantom.cache_dir or str(workdir / "phantoms"))
        config = dataclasses.replace(variant.config, phantom=phantom)
        variants.append(dataclasses.replace(variant, config=config))
    return dataclasses.replace(grid, variants=tuple(variants))


def froc_lines(study: Study) -> tuple[FrocLine, ...]:
    """Mean curve of each variant with its band."""
    rates = np.array(BAND_RATES)
    return tuple(
        FrocLine(
            name=variant.name,
            fp_per_scan=rates,
            sensitivity=np.array([point.value for point in variant.band]),
            band_fp_per_scan=rates,
            band_low=np.array([point.low for point in variant.band]),
            band_high=np.array([point.high for point in variant.band]),
            operating_point=(
                variant.metrics["fp_per_scan"].mean.value,
                variant.metrics["sensitivity"].mean.value,
            ),
        )
        for variant in study.variants
    )


def sentences(study: Study, validation: findings.SubjectSet) -> tuple[str, ...]:
    """What was done, in words."""
    return (
        f"{study.scans} prepared test subjects with {study.lesions} microbleeds, without localization unless "
        f"it is named. Hit: {CENTER3.title} (Hungarian). False positives are over all test subjects.",
        f"Threshold of each run: the highest sensitivity at no more than {OPERATING_FP_RATE:g} false "
        f"positives per scan on {len(validation.subjects)} validation subjects.",
        f"Reference: {study.reference}. Matched sensitivity: {study.matched_sensitivity:.3f}.",
    )


def examples_of(
    grid: Grid,
    runs: Sequence[Run],
    study: Study,
    test: findings.SubjectSet,
    training: findings.SubjectSet | None,
    embeddings: Mapping[str, findings.Embedded],
    say: Say,
) -> tuple[tuple[Table, ...], tuple[tuple[str, str, tuple[Example, ...]], ...]]:
    """Where two variants differ and what prototypes match, at the matched sensitivity: table, pictures."""
    events = {run.name: run.events for variant in study.variants for run in variant.runs}

    def at_matched(run: Run) -> tuple[tuple[examples.Reported, ...], tuple[examples.Reported, ...]]:
        threshold = examples.threshold_at(events[run.name], study.matched_sensitivity)
        return examples.reported(findings.detections_of(run.weights, test, say), test.truths, threshold)

    tables: tuple[Table, ...] = ()
    sections: list[tuple[str, str, tuple[Example, ...]]] = []
    names = grid.contrast or ()
    false = {(run.variant.name, run.seed): at_matched(run)[0] for run in runs if run.variant.name in names}
    if grid.contrast and (found := examples.difference_of(grid.contrast, false)) is not None:
        tables = (examples.difference_table(found, study.scans, study.matched_sensitivity),)
        explanation = (
            "False positives at the matched sensitivity, three planes of SWI (above) and phase; by kind, the "
            "most frequent first, of each kind the highest scores. A place is shown once, whatever the seeds."
        )
        sections += [
            (title, explanation, shown) for title, shown in examples.difference_examples(found, test) if shown
        ]
    # prototypes of one run: preferably the contrasted variant, else the first with prototypes
    embedded = [run for run in runs if run.name in embeddings]
    embedded.sort(key=lambda run: run.variant.name not in names[1:])
    if embedded and training is not None:
        run = embedded[0]
        library = findings.embedded_of(run, training, say, patches=LIBRARY_PATCHES)
        wrong, right = at_matched(run)
        places = (*examples.a_few(examples.once_each(wrong), FALSE_EXPLAINED), *right[-FOUND_EXPLAINED:])
        if library is not None and places:
            explanation = (
                f"{run.name}: candidates in the embedding of its prototypes. Distances are Euclidean; "
                f"training samples are mined anchors of {LIBRARY_PATCHES} patches. Axial SWI and phase."
            )
            shown = examples.prototype_examples(run, test, places, training, library)
            sections.append(("What the prototypes see", explanation, shown))
    return tables, tuple(sections)


def write_study(
    workdir: Path,
    out: Path,
    grid: Grid,
    runs: Sequence[Run],
    study: Study,
    localized: Study,
    validation: findings.SubjectSet,
    test: findings.SubjectSet,
    say: Say,
) -> None:
    """Write table.csv, table.md and ablation.html."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    maps: list[EmbeddingMap] = []
    embeddings: dict[str, findings.Embedded] = {}
    gradients: dict[str, tuple[Config, dict[str, np.ndarray]]] = {}
    training = training_set(runs[0])  # the same for all runs, so that their gradients can be compared
    for run in runs:
        costs[run.variant.name].append(cost_of(run))
        first = run.seed == min(other.seed for other in runs if other.variant == run.variant)
        if (embedded := findings.embedded_of(run, test, say)) is not None:
            embeddings[run.name] = embedded
            maps += findings.maps_of(run.name, embedded) if first else []
        if first and course.kept_steps(run) and training is not None:
            gradients[run.name] = (run.config, course.gradient_course(run, training, say))
    tables = study_tables(study, localized, costs, grid.verdict)
    if grid.longest_rise is not None and (rises := course.rises_of(runs, validation, say)):
        tables += (course.length_table(rises, grid.longest_rise),)
    tables += (findings.separation_table(embeddings),) * bool(embeddings)
    tables += (course.gradient_table(gradients),) * bool(gradients)
    further, pictured = examples_of(grid, runs, study, test, training, embeddings, say)
    tables += further
    summary = sentences(study, validation)
    missing = len(runs_of(grid, workdir)) - len(runs)
    warnings = [f"{missing} runs of the grid are not finished and are left out."] * (missing > 0)
    if training is None:
        warnings.append("The training subjects are not kept: gradients and nearest samples are left out.")
    warnings += [
        f"{run.name} was trained with other settings than the grid's: {', '.join(others)}"
        for run in runs
        if (others := other_settings(run))
    ]
    content = AblationContent(
        title=TITLE,
        sentences=summary,
        curves=froc_lines(study),
        curve_note=(
            f"Mean over the seeds. Band: 95 % interval of {study.samples} resamples of scans and seeds. "
            "Dots: mean operating points."
        ),
        tables=tables,
        maps=tuple(maps),
        examples=pictured,
        warnings=tuple(warnings),
        settings=(
            ("seeds", ", ".join(map(str, grid.seeds))),
            ("validation subjects", f"{len(validation.subjects)}, sha256 of truth {validation.sha256[:16]}"),
            ("test subjects", f"{len(test.subjects)}, sha256 of truth {test.sha256[:16]}"),
        ),
        inputs=tuple((run.name, run.weights.name, sha256_file(run.weights)) for run in runs),
        version=cmb_jax.__version__,
    )
    # overwritten by every run of this command
    atomic_write_text(out / "table.csv", csv_text(study, localized), overwrite=True)
    notes = [f"Warning: {warning}" for warning in warnings]
    atomic_write_text(
        out / "table.md",
        markdown_text(TITLE, ["Research use only.", *summary, *notes], tables),
        overwrite=True,
    )
    atomic_write_text(out / "ablation.html", render_ablation(content), overwrite=True)


def scores_of(
    runs: Sequence[Run], sets: Sequence[findings.SubjectSet], workdir: Path, say: Say
) -> tuple[dict[str, list[RunScores]], dict[str, list[RunScores]]]:
    """Scores of the runs by variant on the validation and the test set, without and with localization."""
    plain, localized = defaultdict[str, list[RunScores]](list), defaultdict[str, list[RunScores]](list)
    maps = [findings.region_maps(workdir, subjects, say) for subjects in sets]
    truths = [subjects.truths for subjects in sets]
    for run in runs:
        found = [findings.detections_of(run.weights, subjects, say) for subjects in sets]
        inside = [findings.localized(*pair) for pair in zip(found, maps, strict=True)]
        for scores, pair in ((plain, found), (localized, inside)):
            scores[run.variant.name].append(
                score_run(run.name, pair[0], truths[0], pair[1], truths[1], OPERATING_FP_RATE)
            )
    return plain, localized


def run_study(
    grid: Grid,
    workdir: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    training: bool = True,
    samples: int = SAMPLES,
    out: Path | None = None,
) -> Study:
    """Train the missing runs, search the subjects, write the tables and the page.

    Args:
        workdir: folder of all runs, NAME-seedK each.
        validation: folder of prepared subjects to choose thresholds by; None: simulated by the configuration.
        test: likewise, to compare on.
        training: False: only the finished runs are compared.
        samples: bootstrap resamples.
        out: folder for tables and page; None: the workdir.

    Raises:
        UserError: folders that hold other runs, subjects that cannot be used, or no finished reference.
    """
    # check everything that can go wrong before spending hours on training
    findings.require_scikit_learn()
    if samples < 1:
        raise UserError(f"--samples {samples}: give 1 or more")
    say = stopwatch()
    grid = with_one_cache(grid, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    sets = {
        name: prepared_set(name, folder, grid, workdir)
        for name, folder in (("validation", validation), ("test", test))
    }
    runs = complete(runs_of(grid, workdir), say, training=training)
    if not any(run.variant.name == grid.reference for run in runs):
        raise UserError(f"{workdir}: no run of the reference {grid.reference} is finished; train it first")
    plain, inside = scores_of(runs, (sets["validation"], sets["test"]), workdir, say)
    say("comparing")
    compared = functools.partial(
        compare_variants, reference=grid.reference, pairs=grid.pairs, samples=samples
    )
    study = compared(plain, matched_sensitivity=grid.matched_sensitivity)
    # at the sensitivity of the first comparison, also where that is the reference's own
    localized = compared(inside, matched_sensitivity=study.matched_sensitivity)
    out = workdir if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    write_study(workdir, out, grid, runs, study, localized, sets["validation"], sets["test"], say)
    print(f"written: {out / 'ablation.html'}, table.md, table.csv")
    return study
