"""What a reader says about a candidate, or about a lesion that only the reader saw."""

from __future__ import annotations

import dataclasses
import enum

from cmb_jax.errors import UserError


class Verdict(enum.StrEnum):
    """A reader's word on a candidate."""

    MICROBLEED = "microbleed"
    MIMIC = "mimic"
    UNCERTAIN = "uncertain"


MIMIC_KINDS: tuple[str, ...] = (
    "vessel",
    "calcification",
    "cavernous malformation",
    "partial volume",
    "artifact",
    "iron deposition",
    "hemorrhagic lesion",
    "other",
)
"""What readers are told to exclude (MARS: Gregoire et al. 2009; BOMBS: Cordonnier et al. 2009), in the words
of Microbleed-review-viewer."""

CERTAINTIES: tuple[str, ...] = ("definite", "possible")
"""How sure a reader is of a microbleed (MARS)."""

VERDICT_WORDS = ", ".join(Verdict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One candidate or added lesion as a reader left it."""

    candidate: int | None  # id in detections.csv; None: added by the reader
    verdict: Verdict | None  # None: not read
    position_mm: tuple[float, float, float]  # RAS
    mimic: str = ""  # one of MIMIC_KINDS, or empty
    certainty: str = ""  # of a microbleed: one of CERTAINTIES, or empty: the reader did not say
    diameter_mm: float | None = None  # as the reader measured or drew it
    where: str = ""  # row, point or label, for messages


def parse_verdict(text: str, mimic: str, where: str) -> tuple[Verdict | None, str]:
    """Verdict and kind of mimic from what was typed; "mimic: vessel" in one is read as both.

    Args:
        text: verdict, in any case of letters; empty: not read.
        mimic: kind of mimic, or empty.
        where: file and row, for the message.

    Raises:
        UserError: another word, or a kind of mimic for what is said to be none.
    """
    word, _, kind = (part.strip().casefold() for part in text.partition(":"))
    kind = kind or mimic.strip().casefold()
    if word and word not in list(Verdict):
        raise UserError(
            f"{where}: verdict is {text.strip()!r}; allowed: {VERDICT_WORDS}, or empty (not read)"
        )
    if kind and kind not in MIMIC_KINDS:
        raise UserError(f"{where}: kind of mimic is {kind!r}; allowed: {', '.join(MIMIC_KINDS)}, or empty")
    if kind and word != Verdict.MIMIC:
        raise UserError(
            f"{where}: names the mimic {kind!r}, but the verdict is not mimic; correct one of them"
        )
    return (Verdict(word) if word else None), kind
