"""Splits by patient: no patient's scans, synthetic or repeated, ever stand on two sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.datasets.sheets import read_csv
from cmb_jax.datasets.types import Case
from cmb_jax.errors import UserError

SPLITS = ("train", "val", "test")
"""What is learned from, what the operating point is chosen on, and what is used for nothing else."""


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


def read_split(path: Path, cases: Sequence[Case]) -> dict[str, tuple[Case, ...]]:
    """A split as a table says it: CSV with the columns case_id and split (train, val or test).

    Further columns and capital letters make no difference. Cases that the table does not name are in no part.

    Args:
        path: the table.
        cases: of one index.

    Returns:
        Cases of each of `SPLITS` in order of their IDs.

    Raises:
        UserError: an unreadable table, a case that the index lacks or that stands there twice, another name
            of a part, or a patient in two parts.
    """
    known = {case.case_id.casefold(): case for case in cases}
    parts: dict[str, list[Case]] = {name: [] for name in SPLITS}
    side_of_case: dict[str, str] = {}
    side_of_patient: dict[str, str] = {}
    for line, row in enumerate(read_csv(path, ("case_id", "split")), start=2):
        name, side = row["case_id"], row["split"].casefold()
        if side not in SPLITS:
            raise UserError(f"{path}: line {line}: split is {row['split']!r}; write {', '.join(SPLITS)}")
        case = known.get(name.casefold())
        if case is None:
            raise UserError(
                f"{path}: line {line}: the index has no case {name!r}; correct the line or make the "
                "index again"
            )
        if name.casefold() in side_of_case:
            raise UserError(f"{path}: line {line}: case {name} stands there twice; keep one line")
        side_of_case[name.casefold()] = side
        if side_of_patient.setdefault(case.patient_id, side) != side:
            raise UserError(
                f"{path}: line {line}: patient {case.patient_id} is in {side_of_patient[case.patient_id]} "
                f"and in {side}; put all scans of a patient into one part"
            )
        parts[side].append(case)
    return {name: tuple(sorted(part, key=lambda case: case.case_id)) for name, part in parts.items()}
