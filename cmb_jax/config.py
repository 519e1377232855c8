"""One tree of frozen dataclasses is one experiment. `configs/*.py` each build one.

Every field can be overridden on the command line by its dotted name, e.g. `--train.steps 500`.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    import jax

Triple = tuple[int, int, int]
PROPOSAL_STRIDE: Triple = (1, 2, 2)
"""Working-grid voxels (z, y, x) per cell of the proposal grid: slices are thick, so z is left alone."""
MinerName = Literal["mimics_first", "top_objectness", "semi_hard"]
Flips = Literal["none", "x", "xyz"]
Precision = Literal["float32", "mixed", "bfloat16"]

# Settings of the network that change how it is computed, not what its weights are.
EXECUTION_FIELDS = frozenset({"remat"})
# Settings that the configuration stored with older weights lacks; their defaults give the network as it was.
NEWER_THAN_SOME_WEIGHTS = frozenset({"box_width", "semantic_head", "second_level"})


def _check_precision(part: str, value: str) -> None:
    if value not in get_args(Precision):
        raise ValueError(f"{part}.precision must be one of {', '.join(get_args(Precision))}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Detector network: space-to-depth stem, U-Net, feature fusion, region proposals, prototypes."""

    widths: tuple[int, ...] = (16, 24, 32, 48)
    """Channels of each U-Net level, finest first."""
    encoder_convs: tuple[int, ...] = (0, 1, 2, 2)
    """3x3x3 convolutions of each encoder level, after the stem or the pooling."""
    decoder_convs: tuple[int, ...] = (0, 1, 1)
    """3x3x3 convolutions of each decoder level, finest first."""
    stem_kernel: Triple = (1, 3, 3)
    """Kernel (z, y, x) of the first convolution, after space-to-depth (1, 2, 2)."""
    use_fusion: bool = True
    """Feature fusion module: the head sees P1..P3; otherwise P1 alone."""
    second_level: bool = False
    """Without fusion: the head sees P2 alone (2 mm cells, repeated to the proposal grid), not P1."""
    fusion: Literal["sum", "concat"] = "sum"
    """How the reduced decoder levels are fused."""
    fusion_width: int = 16
    """Channels that each decoder level is reduced to."""
    head_width: int = 16
    """Channels of the proposal head's 3x3x3 convolution."""
    box_width: int = 0
    """Channels of a 3x3x3 convolution of its own for the boxes; 0: they are read from the scores' one."""
    semantic_head: bool = False
    """Training also tells vein, calcification, nucleus and others apart, cell by cell."""
    anchor_diameters_mm: tuple[float, ...] = (2.5, 4.0, 6.0, 10.0)
    """Edge length of the cubic anchors at every cell."""
    use_prototypes: bool = True
    """Hard sample prototype learning during training."""
    embedding_dim: int = 16
    """Length of the embedding of one anchor."""
    prototypes_per_class: int = 4
    """Prototypes of each class (CMB, mimic)."""
    remat: bool = False
    """Compute the inside of each block again in the backward pass: less memory, the same values."""

    def __post_init__(self) -> None:
        # weights come from anywhere: the upper limits keep a damaged configuration from asking for absurd
        # arrays
        levels = len(self.widths)
        if len(self.encoder_convs) != levels or len(self.decoder_convs) != levels - 1:
            raise ValueError("encoder_convs needs one entry per level, decoder_convs one fewer")
        if self.use_fusion and self.second_level:
            raise ValueError("model.second_level is for a head without fusion: set model.use_fusion False")
        if not 3 <= levels <= 8:
            raise ValueError("the detector needs at least three levels (P1..P3), and 8 at most")
        numbers = {
            "channels": (*self.widths, self.fusion_width, self.head_width, self.embedding_dim),
            "prototypes_per_class": (self.prototypes_per_class,),
            "kernel edges": self.stem_kernel,
        }
        for name, values in numbers.items():
            if not all(1 <= value <= 4096 for value in values):
                raise ValueError(f"model: {name} must be 1 to 4096, got {values}")
        convs = (*self.encoder_convs, *self.decoder_convs)
        if not all(0 <= value <= 32 for value in convs) or not 0 <= self.box_width <= 4096:
            raise ValueError("model: a level has 0 to 32 convolutions, and box_width is 0 to 4096")
        if not 1 <= len(self.anchor_diameters_mm) <= 64 or min(self.anchor_diameters_mm) <= 0:
            raise ValueError("model.anchor_diameters_mm must be 1 to 64 lengths above 0")

    def network(self) -> ModelConfig:
        """The part of the configuration that weights belong to, however the network is computed."""
        return dataclasses.replace(self, remat=False)  # EXECUTION_FIELDS

    @property
    def total_stride(self) -> Triple:
        """Working-grid voxels (z, y, x) per cell of the coarsest level."""
        pooled = 2 ** (len(self.widths) - 1)
        return (pooled, 2 * pooled, 2 * pooled)


class PrototypeLoss(Protocol):
    """A loss on mined samples: a callable frozen dataclass of its settings.

    Pure, with static shapes, and 0 in value and gradient where a sample is not valid. The package's are in
    `cmb_jax/detector/prototype_losses.py`; `module:Class` names one of your own.
    """

    def __call__(
        self,
        embeddings: jax.Array,
        labels: jax.Array,
        valid: jax.Array,
        prototypes: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """(S, E), (S,), (S,), (classes, K, E), key -> (S,), of which the mean over the valid is the loss."""
        ...


def prototype_losses() -> dict[str, type[PrototypeLoss]]:
    """The package's prototype losses by their short names."""
    # imported by name and only when asked for: the losses import this module
    losses: dict[str, type[PrototypeLoss]] = importlib.import_module(
        "cmb_jax.detector.prototype_losses"
    ).PROTOTYPE_LOSSES
    return losses


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Assignment of anchors and weights of the loss terms."""

    assignment: Literal["iou", "atss"] = "iou"
    """Positive anchors by overlap, or by ATSS: a few of the nearest (docs/losses.md)."""
    atss_candidates: int = 4
    """Nearest anchors of each size that ATSS chooses from."""
    ignore_mm: float = 0.0
    """Anchors centered this near to a truth's box are ignored where they are not positive; 0: none are."""
    positive_iou: float = 0.35
    """An anchor at or above this IoU with a truth is positive; each truth's best anchor always is."""
    negative_iou: float = 0.15
    """An anchor below this IoU with every truth is negative; those between are ignored."""
    focal_alpha: float = 0.5
    """Weight of positives in the focal objectness loss."""
    focal_gamma: float = 2.0
    """Focusing exponent of the objectness loss; 0 is plain cross-entropy."""
    lesion_balance: float = 0.0
    """b: a positive anchor weighs n^-b, n the positives of its lesion (0: anchors equal, 1: lesions)."""
    sampled_negatives: int = 0
    """Negatives per patch in the objectness loss, drawn at random as in Faster R-CNN; 0: all of them."""
    negative_pool: int = 0
    """Sampled negatives are drawn from this many times as many that score highest; 0: from all of them."""
    expected_lesions: float = 0.0
    """Lesions per patch by which the objectness loss is divided; 0: by the batch's positive anchors."""
    box_weight: float = 0.5
    """Weight of the smooth-L1 box loss."""
    concentration_weight: float = 0.2
    """Weight of the prototype loss, whichever it is."""
    semantic_weight: float = 0.2
    """Weight of the cross-entropy of `model.semantic_head`."""
    prototype_balance: bool = False
    """Classes weigh alike in the prototype loss, and so do the lesions of a patch; else all samples do."""
    prototype: PrototypeLoss | None = dataclasses.field(
        default_factory=lambda: prototype_losses()["concentration"]()
    )
    """Loss of the mined anchors' embeddings and its settings, such as `proxy_anchor scale=16`;
    module:Class is one of your own; none: anchors are neither mined nor embedded (docs/losses.md)."""
    prototype_update: Literal["learned", "moving_average"] = "learned"
    """Prototypes follow the gradient, or the mean of the samples nearest to them."""
    prototype_decay: float = 0.99
    """Share of itself that a prototype keeps in a step of the moving average."""
    miner: MinerName = "mimics_first"
    """Which negatives are hard (docs/losses.md)."""
    mine_peaks: bool = False
    """Only negatives that score highest among their neighbors are mined, one of each vein's dark spots."""
    max_positives: int = 64
    """Positive anchors per patch that enter the prototype loss."""
    max_hard_negatives: int = 64
    """Hard negatives mined per patch."""
    memory_bank: int = 0
    """Samples of earlier steps that join those of a step in the prototype loss; 0: none."""

    def __post_init__(self) -> None:
        if self.atss_candidates < 1:
            raise ValueError("loss.atss_candidates must be 1 or more")
        if min(self.ignore_mm, self.negative_pool, self.expected_lesions) < 0:
            raise ValueError("loss.ignore_mm, loss.negative_pool and loss.expected_lesions must be 0 or more")
        if not 0.0 <= self.lesion_balance <= 1.0:
            raise ValueError("loss.lesion_balance must be from 0 to 1")
        if self.sampled_negatives < 0:
            raise ValueError("loss.sampled_negatives must be 0 or more")
        if not 0.0 <= self.prototype_decay < 1.0:
            raise ValueError("loss.prototype_decay must be 0 or more and below 1")
        prototype = self.prototype
        if prototype is not None and (
            isinstance(prototype, type) or not dataclasses.is_dataclass(prototype) or not callable(prototype)
        ):
            raise ValueError("loss.prototype must be an object of a dataclass that can be called, or None")
        if self.memory_bank < 0:
            raise ValueError("loss.memory_bank must be 0 or more")


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """The subjects that are simulated for training, validation and `cmb-jax eval`."""

    train_subjects: int = 72
    """Subjects simulated for training."""
    validation_subjects: int = 12
    """Subjects simulated for validation and the choice of the operating point."""
    train_seed: int = 1_000_000
    """Seed of the first training subject; subject i uses train_seed + i."""
    validation_seed: int = 2_000_000
    """Seed of the first validation subject."""
    test_subjects: int = 24
    """Subjects simulated by `cmb-jax eval`, patient-like in their number of microbleeds."""
    test_seed: int = 950_000
    """Seed of the first test subject; nothing is trained, tuned or chosen on these."""
    mean_cmbs: float = 25.0
    """Mean microbleeds per training subject: denser than patients, so that few volumes teach much."""
    protocols: tuple[str, ...] = ("iso05", "iso08", "sabre", "rss", "thick3", "swi7t", "wide1", "wide3")
    """Acquisition protocols, taken in turn by subject; names as in cmb_jax.phantom.PROTOCOLS."""
    variety: float = 0.2
    """How much wider than the protocols' the ranges of training scanners are, as a share at either end."""
    tiers: tuple[str, ...] = ("easy", "hard")
    """How hard the subjects are, taken in turn; names as in cmb_jax.phantom.TIERS."""
    anatomies: tuple[str, ...] = ("mni2009c", "colin27", "pycortex-s1")
    """Heads, taken in turn; names of anatomy packs."""
    cache_dir: str | None = None
    """Where prepared subjects are kept; default: the run's workdir."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training patch's images, beside mirror images and the turn; mild by default."""

    gamma: float = 1.25
    """SWI to a power from 1 / gamma to gamma."""
    gain: float = 1.15
    """SWI times a factor from 1 / gain to gain."""
    noise: float = 0.04
    """Largest standard deviation of white noise on the SWI, in units of brain tissue."""
    phase_noise: bool = False
    """Noise of the same size on the phase too, over the SWI, as in a complex image."""
    phase_scale: float = 1.4
    """Phase times a factor from 1 / phase_scale to phase_scale: echo time times field strength; it wraps."""
    blur: float = 0.0
    """Probability of a Gaussian blur, along each axis by its own width."""
    blur_mm: float = 0.5
    """Largest standard deviation of the blur along an axis."""
    thickness: float = 0.0
    """Probability of thicker slices (or larger voxels in plane, a third of the cases), interpolated back."""
    thickness_factor: float = 3.0
    """Largest factor on the voxel's edge."""
    bias: float = 0.0
    """Probability of a smooth bias field on the SWI."""
    bias_size: float = 0.3
    """Largest standard deviation of the field's logarithm."""
    high_pass: float = 0.0
    """Probability that the phase is high-passed once more, by a random strength and width."""

    def __post_init__(self) -> None:
        if min(self.gamma, self.gain, self.phase_scale, self.thickness_factor) < 1.0:
            raise ValueError(
                "data.augment: gamma, gain, phase_scale and thickness_factor must be 1 or more (1: no change)"
            )
        if min(self.noise, self.blur_mm, self.bias_size) < 0.0:
            raise ValueError("data.augment: noise, blur_mm and bias_size must be 0 or more")
        shares = (self.blur, self.thickness, self.bias, self.high_pass)
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise ValueError("data.augment: blur, thickness, bias and high_pass are probabilities, 0 to 1")


WIDE_AUGMENTATION = AugmentConfig(
    gamma=1.5,
    gain=1.3,
    noise=0.06,
    phase_noise=True,
    phase_scale=2.0,
    blur=0.3,
    thickness=0.25,
    bias=0.4,
    high_pass=0.25,
)
"""For transfer to scanners that were never simulated."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where scans come from, working grid, patches and augmentation."""

    index: str | None = None
    """Index file of `cmb-jax data index`: own scans to train and evaluate on; none: simulated subjects."""
    split_file: str | None = None
    """CSV with case_id and split (train, val, test) of the index; none: split at random by patient."""
    split_fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of the patients for train, val and test, where no file says it."""
    split_seed: int = 0
    """Random seed of the train/val/test split."""
    phantom_share: float = 0.0
    """Share of the training patches that come from simulated subjects, when there is an index."""
    spacing_mm: tuple[float, float, float] = (1.0, 0.5, 0.5)
    """Working grid (z, y, x) in mm."""
    patch_shape: Triple = (48, 96, 96)
    """Training patch (z, y, x) in voxels of the working grid."""
    batch_size: int = 4
    """Patches per step, over all devices and hosts."""
    max_truths: int = 24
    """True boxes per patch, padded."""
    ignore_rim: bool = False
    """Lesions whose centers lie outside the patch are ignored; else they are to be found at its rim."""
    lesion_patch_fraction: float = 0.6
    """Share of patches that hold a lesion; the rest are centered on a mimic or anywhere in the brain."""
    phase_dropout: float = 0.15
    """Probability that a patch's phase channel is zeroed."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    """Random changes of the images (cmb_jax/data/augment.py)."""
    workers: int = 0
    """Grain worker processes; 0 reads in the main process with threads."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.phantom_share < 1.0:
            raise ValueError("data.phantom_share must be 0 or more and below 1")
        if min(self.split_fractions) < 0 or abs(sum(self.split_fractions) - 1.0) > 1e-6:
            raise ValueError("data.split_fractions must be 0 or more and sum to 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimizer, schedule, checkpoints, mesh."""

    init_from: str | None = None
    """Weights to start from: a bundled name or a .safetensors file; none: from nothing."""
    network_of_start: bool = False
    """Take the network and the loss from those weights, whatever `model` and `loss` say."""
    steps: int = 3200
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    seed: int = 0
    final_patch_shape: Triple | None = None
    """Patch (z, y, x) of the last steps, larger than `data.patch_shape`; none: the same throughout."""
    final_share: float = 0.25
    """Share of the steps, the last ones, that have patches of `final_patch_shape`."""
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    evaluate_every: int = 1000
    log_every: int = 20
    precision: Precision = "mixed"
    """Type of maps and products (docs/performance.md): float32; mixed: float32 maps, convolutions multiply
    bfloat16 (TensorFloat-32 on GPUs) and sum float32; bfloat16: maps too. Parameters stay float32."""
    accumulate: int = 1
    """Parts that the batch is computed in, one after another: less memory, the same gradient."""
    profile_steps: int = 0
    """Steps that JAX's profiler traces, from the third of this start on, into the run's folder `profile`."""
    mesh_data: int = 1
    """Devices that share the batch; 0: all that mesh_space leaves."""
    mesh_space: int = 1
    """Devices that share the depth of each volume."""

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.profile_steps < 0:
            raise ValueError("train.accumulate must be 1 or more, train.profile_steps 0 or more")
        if not 0.0 <= self.final_share <= 1.0:
            raise ValueError("train.final_share must be from 0 to 1")
        if self.network_of_start and self.init_from is None:
            raise ValueError("train.network_of_start needs train.init_from")
        _check_precision("train", self.precision)


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Tiles, suppression, categories."""

    tile_shape: Triple = (176, 448, 384)
    """Largest tile (z, y, x) in voxels of the working grid, halo included; a multiple of the total stride."""
    precision: Precision = "float32"
    """As `train.precision`. Scores differ by a few hundredths at most between the three."""
    max_candidates: int = 4096
    """Candidates kept before suppression."""
    max_detections: int = 256
    """Detections kept after suppression; more where more reach the operating point."""
    nms_iou: float = 0.1
    """Boxes that overlap a better one by more than this are suppressed."""
    score_threshold: float = 0.5
    """Operating point: the lowest score that is reported as kept; chosen on validation subjects."""
    definite_threshold: float = 0.8
    """From this score on a detection is called definite, below it possible."""
    candidate_threshold: float = 0.05
    """Candidates below this score are not listed at all."""
    flips: Flips = "none"
    """Mirror images whose scores are averaged with the image's own: none, x (2 passes), xyz (4 passes)."""
    calibration_scores: tuple[float, ...] = ()
    """Knots of the map from score to probability, rising; none: the weights are not calibrated."""
    calibration_probabilities: tuple[float, ...] = ()
    """Probability at each knot, straight lines between; written by `cmb-jax calibrate`."""
    magnitude_score_threshold: float | None = None
    """Operating point of scans without a phase, where calcifications look like blood; none: the same."""
    magnitude_definite_threshold: float | None = None
    """`definite_threshold` of scans without a phase; none: the same."""
    magnitude_calibration_scores: tuple[float, ...] = ()
    """Knots for scans without a phase; none: the same map."""
    magnitude_calibration_probabilities: tuple[float, ...] = ()
    """Probability at each of these knots."""

    def __post_init__(self) -> None:
        if self.flips not in get_args(Flips):
            raise ValueError(f"inference.flips must be one of {', '.join(get_args(Flips))}")
        _check_precision("inference", self.precision)

    def for_scan(self, *, phase: bool) -> InferenceConfig:
        """The settings for one scan: without a phase, the thresholds and the map of such scans, if any."""
        if phase or self.magnitude_score_threshold is None:
            return self
        definite = self.magnitude_definite_threshold
        return dataclasses.replace(
            self,
            score_threshold=self.magnitude_score_threshold,
            definite_threshold=self.definite_threshold if definite is None else definite,
            calibration_scores=self.magnitude_calibration_scores or self.calibration_scores,
            calibration_probabilities=self.magnitude_calibration_probabilities
            or self.calibration_probabilities,
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "small"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    phantom: PhantomConfig = dataclasses.field(default_factory=PhantomConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
