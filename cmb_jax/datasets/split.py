"""Splits by patient: no patient's scans, synthetic or repeated, ever stand on two sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cmb_jax.datasets.types import Case


def split_by_patient(
    cases: Iterable[Case], fractions: Mapping[str, float], *, seed: int
) -> dict[str, tuple[Case, ...]]:
    """Deal patients out to splits, each cohort in about the same shares.

    Patients are put in random order within each set of cohorts that they belong to, and every one goes to
    the split that is furthest behind its share. The order of `cases` does not matter.

    Args:
        cases: of one index.
        fractions: share of patients for each split, such as {"train": 0.8, "test": 0.2}; they sum to 1.
        seed: 0 or more; the same seed gives the same splits.

    Returns:
        Cases of each split in order of their IDs.

    Raises:
        ValueError: shares that are negative or do not sum to 1.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1.0) > 1e-6:
        raise ValueError(f"shares {dict(fractions)} must be 0 or more and sum to 1")
    ordered = sorted(cases, key=lambda case: case.case_id)
    cohorts: dict[str, set[str]] = {}
    for case in ordered:
        cohorts.setdefault(case.patient_id, set()).add(case.cohort)
    patients = sorted(cohorts)
    order = np.random.default_rng(seed).permutation(len(patients))
    dealt = sorted((tuple(sorted(cohorts[patients[i]])), rank, patients[i]) for rank, i in enumerate(order))
    names, shares = list(fractions), np.array(list(fractions.values()))
    counts = np.zeros(len(names))
    side: dict[str, str] = {}
    for number, (_, _, patient) in enumerate(dealt, start=1):
        choice = int(np.argmax(shares * number - counts))
        counts[choice] += 1
        side[patient] = names[choice]
    return {name: tuple(case for case in ordered if side[case.patient_id] == name) for name in names}
