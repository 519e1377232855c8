"""methods.md: what was done, as sentences for a paper, with the works to cite."""

import dataclasses
from collections.abc import Callable, Sequence

_REFERENCES = {
    "method": "Kim J-H, Noh Y, Lee H, et al. Toward automated detection of microbleeds with anatomical scale "
    "localization using deep learning. 2023. arXiv:2306.13020.",
    "mars": "Gregoire SM, Chaudhary UJ, Brown MM, et al. The Microbleed Anatomical Rating Scale (MARS): "
    "reliability of a tool to map brain microbleeds. Neurology 2009;73:1759-1766.",
    "regions": "Billot B, Greve DN, Puonti O, et al. SynthSeg: segmentation of brain MRI scans of any "
    "contrast and resolution without retraining. Med Image Anal 2023;86:102789.",
    "mni": "Fonov V, Evans AC, Botteron K, et al. Unbiased average age-appropriate atlases for pediatric "
    "studies. NeuroImage 2011;54:313-327.",
    "phase": "Haacke EM, Xu Y, Cheng Y-CN, Reichenbach JR. Susceptibility weighted imaging (SWI). Magn "
    "Reson Med 2004;52:612-618.",
}


_SCANS_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsFacts:
    """What the sentences depend on, of one scan or of all that were made in one way."""

    version: str
    weights_name: str
    weights_sha256: str
    threshold: float
    calibrated: bool  # probabilities are given
    bundled: bool  # the weights come with the package
    phase: bool | None  # a phase was used; None: where a scan had one
    threshold_without_phase: float | None = None  # where some scans had a phase and some not; None: the same
    options: tuple[str, ...] = ()  # settings other than the usual ones, e.g. "flips xyz"
    own_regions: bool = False  # a label volume took the place of the region network
    made_swi: bool = False  # SWI was made here from magnitude and phase
    mni: bool = True  # MNI coordinates are given
    scans: tuple[str, ...] = ()  # names, where other scans of the cohort were made in another way


def methods_text(ways: Sequence[MethodsFacts]) -> str:
    """Markdown that may be put into a paper as it is; every sentence holds for the results that are there.

    Args:
        ways: the ways in which results were made, one for most cohorts; with several, each names its scans.
    """
    used: list[str] = []

    def cite(name: str) -> str:
        if name not in used:
            used.append(name)
        return f"[{used.index(name) + 1}]"

    total = sum(len(facts.scans) for facts in ways)
    paragraphs = []
    if len(ways) > 1:
        paragraphs.append(
            f"**These results were made in {len(ways)} ways, each described below: do not compare or pool "
            "their counts.** Make them alike with `cmb-jax bids ... participant --overwrite`."
        )
    for facts in ways:
        text = _paragraph(facts, cite)
        paragraphs.append(f"{_scans_text(facts.scans, total)} {text}" if len(ways) > 1 else text)
    references = "\n".join(f"{number}. {_REFERENCES[name]}" for number, name in enumerate(used, start=1))
    return (
        "# Methods text\n\n"
        "Written by the run itself; to be used as it is (CC0), with the brackets filled in. "
        "Research use only; not a diagnosis.\n\n"
        + "\n\n".join(paragraphs)
        + f"\n\n## References\n\n{references}\n"
    )


def _scans_text(scans: tuple[str, ...], total: int) -> str:
    named = ", ".join(scans[:_SCANS_NAMED])
    more = f" and {len(scans) - _SCANS_NAMED} more" if len(scans) > _SCANS_NAMED else ""
    return f"{len(scans)} of {total} scans ({named}{more}):"


def _paragraph(facts: MethodsFacts, cite: Callable[[str], str]) -> str:
    inputs = {
        True: "susceptibility-weighted images and phase",
        False: "susceptibility-weighted images without phase",
        None: "susceptibility-weighted images and, where there was one, phase",
    }[facts.phase]
    trained = "simulated scans only" if facts.bundled else "[say on what the weights were trained]"
    sentences = [
        f"Cerebral microbleeds were detected with cmb_jax {facts.version}, a 3D convolutional network after "
        f"Kim et al. {cite('method')} trained on {trained} (weights {facts.weights_name}, SHA-256 "
        f"{facts.weights_sha256[:16]}{''.join(f', {option}' for option in facts.options)}), from {inputs}.",
    ]
    if facts.made_swi:
        sentences.append(
            "Where no susceptibility-weighted image was stored, it was made from magnitude and phase "
            f"{cite('phase')}."
        )
    if facts.own_regions:
        sentences.append("The brain and its regions were taken from given label volumes.")
    else:
        sentences.append(
            "The brain and its regions were labeled at 2 mm by a network that was trained on "
            f"synthetic contrasts {cite('regions')}."
        )
    other = facts.threshold_without_phase
    without = "" if other in (None, facts.threshold) else f" (without a phase {other:.3f})"
    sentences.append(
        f"Candidates with a score of at least {facts.threshold:.3f}{without} in brain tissue were kept"
        + (", each with a calibrated probability" if facts.calibrated else "")
        + "; their region and zone (lobar, deep, infratentorial) follow the Microbleed Anatomical Rating "
        f"Scale {cite('mars')}."
    )
    if facts.mni:
        sentences.append(
            "Coordinates in MNI152NLin2009cAsym space "
            f"{cite('mni')} come from an affine transform between the centers of brain regions."
        )
    sentences.append(
        "The detections were [not] reviewed by [readers]. [Say here how, and cite the "
        "evaluation that you rely on.]"
    )
    return " ".join(sentences)
