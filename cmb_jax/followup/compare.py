"""Two time points to what changed between them: the whole comparison as a Python function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.followup.changes import (
    MATCH_MM,
    MIN_DISTINCTNESS,
    MIN_SIGNAL,
    MOVED_SHARE,
    STILL_DARK,
    find_changes,
)
from cmb_jax.followup.protocol import protocol_warnings, provenance_warnings
from cmb_jax.followup.registration import Registration, register
from cmb_jax.followup.statement import statement
from cmb_jax.followup.time_point import TimePoint
from cmb_jax.report.comparison_content import Change, ComparisonContent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changed between two scans of one patient."""

    baseline: TimePoint
    followup: TimePoint
    registration: Registration
    changes: tuple[Change, ...]
    statement: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]

    @property
    def content(self) -> ComparisonContent:
        """For the report."""
        found = self.registration
        quality = (
            ("trusted", "yes" if found.trusted else "no"),
            ("Dice of the brain masks", f"{found.dice:.3f}"),
            ("correlation of the images", f"{found.correlation:.3f}"),
            ("mutual information (nats)", f"{found.mutual_information:.3f}"),
            ("shared part of the brain", f"{found.shared:.2f}"),
            ("rotation (degrees)", f"{found.rotation_deg:.1f}"),
        )
        return ComparisonContent(
            baseline=self.baseline.content,
            followup=self.followup.content,
            changes=self.changes,
            matrix=found.matrix,
            trusted=found.trusted,
            quality=quality,
            statement=self.statement,
            warnings=self.warnings,
            settings=self.settings,
            version=cmb_jax.__version__,
        )


def compare(
    baseline: TimePoint,
    followup: TimePoint,
    *,
    match_mm: float = MATCH_MM,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Register, match, judge.

    Args:
        baseline: the earlier scan with its result.
        followup: the later one.
        match_mm: greatest distance of one lesion at two times, after registration.
        progress: told what is being done.

    Raises:
        UserError: both are the same image.
    """
    if baseline.image.sha256 is not None and baseline.image.sha256 == followup.image.sha256:
        raise UserError(
            f"{followup.image.source}: is the same image as {baseline.image.source}; give two time points"
        )
    say = progress or (lambda _: None)
    say("registering the follow-up to the baseline")
    found = register(baseline.image, baseline.brain, followup.image, followup.brain)
    say("matching lesions")
    changes = find_changes(
        baseline.rows, followup.rows, found, baseline.surveyed, followup.surveyed, match_mm=match_mm
    )
    warnings = [*provenance_warnings(baseline, followup), *protocol_warnings(baseline, followup)]
    if not found.trusted:
        warnings.insert(
            0,
            f"The registration is not trusted: {'; '.join(found.faults)}. Do both scans show the same head? "
            "No lesion is called new, resolved or stable.",
        )
    return Comparison(
        baseline=baseline,
        followup=followup,
        registration=found,
        changes=changes,
        statement=statement(changes, found.trusted),
        warnings=tuple(warnings),
        settings=(
            ("match_mm", f"{match_mm:g}"),
            ("moved_mm", f"{MOVED_SHARE * match_mm:g}"),
            ("min_signal", f"{MIN_SIGNAL:g}"),
            ("min_distinctness", f"{MIN_DISTINCTNESS:g}"),
            ("still_dark", f"{STILL_DARK:g}"),
        ),
    )
