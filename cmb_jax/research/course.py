"""The course of runs, from their stored checkpoints: validation near the end, the share of each loss in the
gradient.

Nothing is trained; the only files written to the folders of runs are cached results.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.config import Config
from cmb_jax.data.patches import patch_batches
from cmb_jax.detector.mining import SampleBank
from cmb_jax.evaluation.froc import average_precision, froc_curve
from cmb_jax.evaluation.matching import CENTER3, froc_events
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.inference.proposals import ProposalFinder
from cmb_jax.progress import Say
from cmb_jax.report.evaluation import Table
from cmb_jax.research.findings import SetDetections, SubjectSet, detections_of, kept, kept_detections
from cmb_jax.research.runs import Run
from cmb_jax.training.checkpoint import Checkpoints
from cmb_jax.training.detector import DeviceBatch, init_state, loss_function, put_batch, template_of
from cmb_jax.training.distributed import make_mesh
from cmb_jax.training.state import TrainState

GRADIENT_BATCHES = 4
GRADIENT_SEED = 20  # of the patches; no run was trained with this order
PER_STEPS = 1000


def kept_steps(run: Run) -> tuple[int, ...]:
    """Steps of a run's checkpoints, rising."""
    folder = run.folder / "checkpoints"
    return tuple(sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()))


def state_at(run: Run, step: int) -> TrainState:
    """The state of a kept checkpoint."""
    mesh = make_mesh()
    abstract = jax.eval_shape(lambda: init_state(run.config, mesh))
    with Checkpoints(run.folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(abstract, mesh, step)


def detections_at(run: Run, step: int, subjects: SubjectSet, say: Say) -> SetDetections:
    """Detections in a set by the averaged parameters of a stored checkpoint, cached beside the weights."""
    bundle = load_bundle(run.weights)
    return kept_detections(
        run.folder,
        f"{bundle.sha256} step {step}",
        lambda: ProposalFinder(bundle.config, state_at(run, step).ema),
        subjects,
        say,
        suffix=f"-step{step}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rise:
    """Average precision on validation near the end of one run."""

    steps: tuple[int, int]  # of the last checkpoint but one and of the weights
    precision: tuple[float, float]

    @property
    def per_1000(self) -> float:
        """Rise per `PER_STEPS` steps."""
        return (self.precision[1] - self.precision[0]) / (self.steps[1] - self.steps[0]) * PER_STEPS


def precision_of(found: SetDetections, subjects: SubjectSet) -> float:
    """Average precision, 3 mm rule."""
    curve = froc_curve(froc_events(CENTER3, found.scans, subjects.truths))
    return average_precision(curve.tp, curve.fp, curve.lesions)


def rises_of(runs: Sequence[Run], validation: SubjectSet, say: Say) -> dict[str, list[Rise]]:
    """Rises of the runs that have a checkpoint before their end, by variant."""
    rises: dict[str, list[Rise]] = defaultdict(list)
    for run in runs:
        last = load_bundle(run.weights).config.train.steps
        before = [step for step in kept_steps(run) if step < last]
        if before:
            found = (
                detections_at(run, before[-1], validation, say),
                detections_of(run.weights, validation, say),
            )
            first, second = (precision_of(each, validation) for each in found)
            rises[run.variant.name].append(Rise(steps=(before[-1], last), precision=(first, second)))
    return rises


def length_table(rises: Mapping[str, Sequence[Rise]], longest_rise: float) -> Table:
    """Whether training was long enough, by the mean over the seeds of each variant."""

    def row(name: str, each: Sequence[Rise]) -> tuple[str | int, ...]:
        steps = {rise.steps for rise in each}
        rise = float(np.mean([one.per_1000 for one in each]))
        return (
            name,
            len(each),
            ", ".join(f"{before} → {last}" for before, last in sorted(steps)),
            " → ".join(f"{np.mean([one.precision[n] for one in each]):.3f}" for n in (0, 1)),
            f"{rise:+.4f}",
            "go on" if rise > longest_rise else "long enough",
        )

    return Table(
        title="Length of training",
        columns=(
            "variant",
            "seeds",
            "steps",
            "average precision on validation",
            f"rise per {PER_STEPS}",
            "rule",
        ),
        rows=tuple(row(name, each) for name, each in rises.items()),
        note=(
            "Averaged parameters of the last kept checkpoint before the end → of the weights; mean over the "
            f"seeds. All runs go on if any variant rises by more than {longest_rise:g} per {PER_STEPS} steps."
        ),
    )


def loss_weights(config: Config) -> dict[str, float]:
    """Weights of the terms in the total loss of a configuration, objectness first."""
    loss = config.loss
    weights = {"objectness": 1.0, "box": loss.box_weight}
    if config.model.use_prototypes and loss.prototype is not None:
        weights["concentration"] = loss.concentration_weight
    if config.model.semantic_head:
        weights["semantic"] = loss.semantic_weight
    return weights


def term_gradients(config: Config, batches: Sequence[DeviceBatch]) -> Callable[[TrainState], np.ndarray]:
    """Gradients (T, N) of the weighted loss terms with respect to the N parameters of the U-Net, averaged
    over batches.

    The terms are those of `loss_weights`; parameters and sample bank come from the state.
    """
    weights, template = loss_weights(config), template_of(config)

    @jax.jit
    def of_batch(params: Any, bank: SampleBank | None, batch: DeviceBatch, key: jax.Array) -> jax.Array:
        def terms(unet: Any) -> jax.Array:
            _, (found, _) = loss_function(
                {**params, "unet": unet}, batch, template, config, bank=bank, key=key
            )
            return jnp.stack([weight * getattr(found, name) for name, weight in weights.items()])

        # one forward pass, then one backward pass per term
        _, back = jax.vjp(terms, params["unet"])
        rows = [jax.tree.leaves(back(one)[0]) for one in jnp.eye(len(weights))]
        return jnp.stack([jnp.concatenate([leaf.ravel() for leaf in row]) for row in rows])

    keys = jax.random.split(jax.random.key(GRADIENT_SEED), len(batches))

    def of_state(state: TrainState) -> np.ndarray:
        each = [of_batch(state.params, state.bank, *drawn) for drawn in zip(batches, keys, strict=True)]
        return np.mean([np.asarray(rows, np.float64) for rows in each], axis=0)

    return of_state


def gradient_course(run: Run, training: SubjectSet, say: Say) -> dict[str, np.ndarray]:
    """Norms (K, T) and cosines to the objectness gradient (K, T) at K stored checkpoints, cached in a file.

    The patches come from the training subjects, the same for every checkpoint and, apart from their shape,
    for every run.
    """
    sha256, steps = load_bundle(run.weights).sha256, kept_steps(run)

    def compute() -> dict[str, np.ndarray]:
        say(f"{run.name}: gradients at {len(steps)} checkpoints")
        data = dataclasses.replace(run.config.data, workers=0)
        stream = patch_batches(training.subjects, data, seed=GRADIENT_SEED)
        # fixed batches: differences between checkpoints must not come from different patches
        batches = [put_batch(batch, make_mesh()) for batch in islice(stream, GRADIENT_BATCHES)]
        gradients_of = term_gradients(run.config, batches)
        norms, cosines = [], []
        for step in steps:
            gradients = gradients_of(state_at(run, step))
            size = np.linalg.norm(gradients, axis=1)
            norms.append(size)
            with np.errstate(invalid="ignore", divide="ignore"):
                cosines.append(gradients @ gradients[0] / (size * size[0]))
        return {"steps": np.array(steps), "norms": np.array(norms), "cosines": np.array(cosines)}

    inputs = f"{sha256} {steps} {training.sha256} {GRADIENT_BATCHES}"
    return kept(run.folder / "gradients.npz", inputs, compute)


def gradient_table(courses: Mapping[str, tuple[Config, Mapping[str, np.ndarray]]]) -> Table:
    """Share of each term over training, one row per run and checkpoint."""
    titles = {"objectness": "objectness", "box": "box", "concentration": "prototypes", "semantic": "semantic"}
    shown = [name for name in titles if any(name in loss_weights(config) for config, _ in courses.values())]

    def row(run: str, config: Config, course: Mapping[str, np.ndarray], at: int) -> tuple[str | int, ...]:
        place = {name: n for n, name in enumerate(loss_weights(config))}
        norms, cosines = course["norms"][at], course["cosines"][at]
        return (
            run,
            int(course["steps"][at]),
            *(
                f"{norms[place[name]]:.3g} ({norms[place[name]] / norms.sum():.0%})" if name in place else "-"
                for name in shown
            ),
            *(f"{cosines[place[name]]:+.2f}" if name in place else "-" for name in shown[1:]),
        )

    return Table(
        title="Each loss in the gradient",
        columns=(
            "run",
            "step",
            *(titles[name] for name in shown),
            *(f"cosine of {titles[name]}" for name in shown[1:]),
        ),
        rows=tuple(
            row(run, config, course, at)
            for run, (config, course) in courses.items()
            for at in range(len(course["steps"]))
        ),
        note=(
            "Norm of the gradient of each weighted loss by the parameters of the U-Net (its share of the sum "
            f"of norms), and its cosine to the gradient of the objectness. Mean of {GRADIENT_BATCHES} "
            "batches of training patches, the same at every kept checkpoint."
        ),
    )
