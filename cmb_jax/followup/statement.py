"""Counts of change as plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from cmb_jax.report.comparison_content import Change

ARIA_SOURCE = (
    "ARIA-H classes by new microhemorrhages: mild 1 to 4, moderate 5 to 9, severe 10 or more (radiographic "
    "severity in the US prescribing information of lecanemab; reporting as in Cogswell et al. 2022, AJNR "
    "43:E19). Superficial siderosis is not assessed. Not a diagnosis."
)
_CLASSES = ((1, "none"), (5, "mild (1-4)"), (10, "moderate (5-9)"))


def count_class(new: int) -> str:
    """The ARIA-H class of a number of new microhemorrhages (`ARIA_SOURCE`): none, mild, moderate, severe."""
    return next((name for below, name in _CLASSES if new < below), "severe (>= 10)")


def statement(changes: Sequence[Change], trusted: bool) -> tuple[str, ...]:
    """What changed, in plain sentences, the ARIA-H class of the new ones among them.

    Args:
        changes: of `find_changes`.
        trusted: whether the registration is; otherwise nothing is classed.
    """
    if not trusted:
        return (
            "The two scans could not be registered, so nothing is called new, resolved or stable and no "
            "class is given.",
            ARIA_SOURCE,
        )
    counts = {name: sum(c.status == name for c in changes) for name in ("new", "resolved", "stable")}
    if not changes:
        return (
            "Neither scan has a reported microbleed: nothing to match, none is new. "
            "An empty list does not prove that there are no microbleeds.",
            f"ARIA-H count class: {count_class(0)}.",
            ARIA_SOURCE,
        )
    maybe = sum(c.status == "uncertain" and _may_be_new(c) for c in changes)
    new = [c for c in changes if c.status == "new"]
    definite = sum(c.row.category == "definite" for c in new)
    of_them = f" ({definite} definite, {len(new) - definite} possible)" if new else ""
    given = f"ARIA-H count class: {count_class(len(new))}, from {len(new)} new microbleeds{of_them}."
    if maybe:
        given += (
            f" {maybe} more at follow-up {'is' if maybe == 1 else 'are'} uncertain; were "
            f"{'it' if maybe == 1 else 'all'} new, the class would be {count_class(len(new) + maybe)}."
        )
    uncertain = sum(c.status == "uncertain" for c in changes)
    return (
        f"{counts['new']} new, {counts['resolved']} no longer seen, {counts['stable']} stable, "
        f"{uncertain} uncertain.",
        given,
        ARIA_SOURCE,
    )


def _may_be_new(change: Change) -> bool:
    """Whether an uncertain lesion was reported at follow-up."""
    return change.followup is not None and change.followup.status == "kept"
