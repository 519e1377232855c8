"""The vessels of a subject: medullary, pial and deep veins, arteries. Sinuses come with the anatomy pack.

Small veins are grown as smooth random walks that taper and branch. The large vessels of the base and of the
midline follow courses that are known. All shapes are static: slots that a subject has no use for stay empty.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.head import (
    Extra,
    HeadMaps,
    blur,
    draw_voxels,
    from_pack,
    gradient,
    in_regions,
    interpolate,
    of_mni,
)
from cmb_jax.phantom.lesions import join
from cmb_jax.phantom.settings import Tier
from cmb_jax.phantom.types import MimicKind

STEP_MM = 0.5
SHORTEST_MM = 10.0  # from a walk's root to its farthest point: a shorter one is not drawn
MURRAY = 2.0 ** (-1.0 / 3.0)  # radius of a daughter over its mother's, two equal daughters (Murray 1926)
SYMMETRIC = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # a matrix from its upper triangle, row by row
TAPER = 0.55  # of the radius is lost from a walk's root to its tip
# Radius of the widest vein but for the trunks of pial veins; their branches have 0.79 of theirs.
MAX_THIN_MM = 0.7
MAX_RADIUS_MM = 1.4
END_ON_RAD = 0.35  # a vein is end-on if it keeps within 20 degrees of the third axis of the image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vessels:
    """Points of all vessels in the image frame, `STEP_MM` apart along each; unused slots are not valid."""

    points_mm: jax.Array  # (N, 3)
    radius_mm: jax.Array  # (N,)
    flow: jax.Array  # (N, 3) unit vectors, the way the blood runs
    chi_ppm: jax.Array  # (N,) of its blood; 0 in arteries
    signal: jax.Array  # (N,) of its blood, over that of tissue
    kind: jax.Array  # (N,) int32 MimicKind
    valid: jax.Array  # (N,) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walks:
    """W walks of S steps from their roots, image frame."""

    points_mm: jax.Array  # (W, S, 3)
    heading: jax.Array  # (W, S, 3) unit vectors, away from the root
    radius_mm: jax.Array  # (W, S)
    alive: jax.Array  # (W, S) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terrain:
    """What bends walks and where they may go, on the planning grid."""

    pull: jax.Array  # (X, Y, Z, 3) added to the heading at every step
    across: jax.Array  # (X, Y, Z, 6) symmetric matrix: at every step the heading loses this times itself
    room: jax.Array  # (X, Y, Z) above 0.5 where a walk may be
    grid: Grid = dataclasses.field(metadata={"static": True})


def unit(vectors: jax.Array) -> jax.Array:
    """(..., 3) scaled to length 1."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def grow(
    key: jax.Array,
    start_mm: jax.Array,
    heading: jax.Array,
    radius_mm: jax.Array,
    steps_wanted: jax.Array,
    used: jax.Array,
    terrain: Terrain,
    *,
    wander: float,
    steps: int,
) -> Walks:
    """Walks from `start_mm` (W, 3) along `heading` (W, 3) while there is room.

    radius_mm (W,) at the root; it falls linearly by `TAPER` over `steps_wanted` (W,), at which a walk ends.
    used (W,): the others stay empty. wander: how much the heading turns at random per step.
    """
    k_noise, k_first = jax.random.split(key)
    ground = jnp.concatenate([terrain.pull, terrain.across, terrain.room[..., None]], axis=-1)

    # A walk is smooth because its turning, `drift`, is itself a random walk that forgets (0.85 per step).
    def step(state: tuple[jax.Array, ...], k: jax.Array):
        point, heading, drift, alive, here = state
        drift = 0.85 * drift + wander * jax.random.normal(k, point.shape)
        # the ground takes away what the heading has across a sulcus (`Terrain.across`) and adds its pull
        held = jnp.einsum("wab,wb->wa", here[:, 3 + SYMMETRIC], heading)
        heading = unit(heading + here[:, :3] - held + drift)
        point = point + STEP_MM * heading
        here = interpolate(ground, terrain.grid, point)
        alive = alive & (here[:, -1] > 0.5)
        return (point, heading, drift, alive, here), (point, heading, alive)

    drift = wander * jax.random.normal(k_first, start_mm.shape)
    first = (start_mm, unit(heading), drift, used, interpolate(ground, terrain.grid, start_mm))
    _, (points, headings, alive) = jax.lax.scan(step, first, jax.random.split(k_noise, steps))
    at = jnp.arange(steps)
    alive = jnp.swapaxes(alive, 0, 1) & (at < steps_wanted[:, None])
    radius = radius_mm[:, None] * (1.0 - TAPER * jnp.minimum(at / steps_wanted[:, None], 1.0))
    return Walks(jnp.swapaxes(points, 0, 1), jnp.swapaxes(headings, 0, 1), radius, alive)


def long_enough(walks: Walks) -> Walks:
    """Without the walks that get nowhere: all of one that stays within `SHORTEST_MM` of its root.

    A short piece of vein, or one that curls up, shows nothing by which it could be told from a microbleed.
    """
    away = jnp.linalg.norm(walks.points_mm - walks.points_mm[:, :1], axis=-1)
    far = jnp.max(jnp.where(walks.alive, away, 0.0), axis=1) >= SHORTEST_MM
    return dataclasses.replace(walks, alive=walks.alive & far[:, None])


def branch(
    key: jax.Array,
    mothers: Walks,
    terrain: Terrain,
    *,
    count: int,
    angle_rad: tuple[float, float],
    wander: float,
    steps: int,
) -> Walks:
    """`count` walks that leave the mothers in turn, each somewhere in the middle of its mother's course.

    Those that are not `long_enough` are left out.
    """
    k_where, k_angle, k_way, k_length, k_grow = jax.random.split(key, 5)
    # Slots are static: a branch whose mother is empty or too short at the drawn place grows like any other,
    # and is marked as not alive.
    mother = jnp.arange(count) % mothers.alive.shape[0]
    length = jnp.sum(mothers.alive[mother], axis=1)
    at = (length * jax.random.uniform(k_where, (count,), minval=0.15, maxval=0.85)).astype(jnp.int32)
    heading = mothers.heading[mother, at]
    # a random direction at a right angle to the mother
    aside = unit(jnp.cross(heading, jax.random.normal(k_way, (count, 3))))
    angle = jax.random.uniform(k_angle, (count, 1), minval=angle_rad[0], maxval=angle_rad[1])
    wanted = jax.random.randint(k_length, (count,), steps // 2, steps + 1)
    return long_enough(
        grow(
            k_grow,
            mothers.points_mm[mother, at],
            jnp.cos(angle) * heading + jnp.sin(angle) * aside,
            mothers.radius_mm[mother, at] * MURRAY,
            wanted,
            mothers.alive[mother, at] & (length > 6),
            terrain,
            wander=wander,
            steps=steps,
        )
    )


def _as_vessels(
    walks: Walks, chi_ppm: jax.Array, signal: jax.Array, kind: int, *, towards_root: bool
) -> Vessels:
    """All points of walks; chi_ppm and signal are (W,). Veins carry blood toward their root."""
    count, steps = walks.alive.shape
    heading = walks.heading.reshape(-1, 3)
    return Vessels(
        points_mm=walks.points_mm.reshape(-1, 3),
        radius_mm=walks.radius_mm.reshape(-1),
        flow=-heading if towards_root else heading,
        chi_ppm=jnp.repeat(chi_ppm, steps),
        signal=jnp.repeat(signal, steps),
        kind=jnp.full((count * steps,), int(kind), jnp.int32),
        valid=walks.alive.reshape(-1),
    )


MEDULLARY_ROOTS, MEDULLARY_STEPS = 340, 84
MEDULLARY_BRANCHES, MEDULLARY_BRANCH_STEPS = 340, 44
PIAL_ROOTS, PIAL_STEPS = 260, 130
PIAL_BRANCHES, PIAL_BRANCH_STEPS = 520, 80
PIAL_TWIGS, PIAL_TWIG_STEPS = 320, 48
CROSSING_ROOTS, CROSSING_STEPS = 200, 80
MEDULLARY_RADII_MM = (0.15, 0.38)  # where a vein is widest, before the tier's factor
PIAL_RADII_MM = (0.35, 0.88)
CROSSING_RADII_MM = (0.25, 0.65)


def _sheet(depth: jax.Array) -> jax.Array:
    """(X, Y, Z, 6) projection onto the normal of the sheet that ridges of `depth` (X, Y, Z) form.

    The structure tensor of the gradient over its trace (Bigun and Granlund 1987): 1 across a sulcus, 0 along.
    """
    six = [blur(product, 1.0) for product in jnp.moveaxis(_squares(gradient(depth)), -1, 0)]
    trace = six[0] + six[3] + six[5] + 1e-6
    return jnp.stack(six, axis=-1) / trace[..., None]


def _squares(vectors: jax.Array) -> jax.Array:
    """(..., 3) -> (..., 6) upper triangle of the outer product of each with itself."""
    row, column = np.triu_indices(3)
    return vectors[..., row] * vectors[..., column]


def _draw_sizes(
    keys: jax.Array, radii_mm: tuple[float, float], roots: int, steps: int, tier: Tier
) -> tuple[jax.Array, jax.Array]:
    """Radius at the root in mm, log-uniform, and length in steps of (roots,) walks; two keys."""
    k_radius, k_length = keys
    low, high = np.log(radii_mm)
    radius = jnp.exp(jax.random.uniform(k_radius, (roots,), minval=low, maxval=high)) * tier.vein_radius
    return radius, jax.random.randint(k_length, (roots,), steps // 3, steps + 1)


def _used(roots: int, share: jax.Array | float, weight: jax.Array) -> jax.Array:
    """(roots,) bool: the first `share` of the slots, none where no place has any weight."""
    return (jnp.arange(roots) < share * roots) & (jnp.sum(weight) > 0)


def _medullary(key: jax.Array, head: HeadMaps, chi_blood: jax.Array, tier: Tier) -> Vessels:
    """From the walls of the lateral ventricles, where they end in larger veins, through the white matter."""
    keys = jax.random.split(key, 8)
    lateral = (head.region == Region.VENTRICLE) & (jnp.abs(head.mni_mm[..., 0]) > 4)
    near = blur(lateral.astype(jnp.float32), 1.2)
    far = blur(lateral.astype(jnp.float32), 7.0)
    white = head.channels[..., Channel.WHITE_MATTER]
    below = in_regions(head.region, Region.BRAINSTEM, Region.CEREBELLUM)
    upper = (head.mni_mm[..., 2] > 0) & ~below
    # near (1 - near) is largest where half of the surroundings is ventricle: at its wall. The wider blur,
    # which is smooth far into the white matter, says which way is out.
    weight = (near * (1 - near)) ** 2 * white * upper
    outward = unit(gradient(-jnp.log(far + 1e-5)))
    start = draw_voxels(keys[0], weight, head.grid, MEDULLARY_ROOTS)
    heading = unit(interpolate(outward, head.grid, start))
    start = start - 1.5 * heading  # at the wall, or just within
    nuclei = in_regions(head.region, Region.THALAMUS, Region.BASAL_GANGLIA)
    room = blur(((white + near > 0.5) & ~below & ~nuclei).astype(jnp.float32), 0.7) * 1.4
    across = 0.08 * (jnp.eye(3)[np.triu_indices(3)] - _squares(outward))
    terrain = Terrain(0.02 * outward, across, room, head.grid)
    radius, length = _draw_sizes(keys[1:3], MEDULLARY_RADII_MM, MEDULLARY_ROOTS, MEDULLARY_STEPS, tier)
    share = tier.vein_density * jax.random.uniform(keys[3], minval=0.5)
    used = _used(MEDULLARY_ROOTS, share, weight)
    mothers = long_enough(
        grow(keys[4], start, heading, radius, length, used, terrain, wander=0.008, steps=MEDULLARY_STEPS)
    )
    daughters = branch(
        keys[5], mothers, terrain, count=MEDULLARY_BRANCHES, angle_rad=(0.3, 0.7),
        wander=0.01, steps=MEDULLARY_BRANCH_STEPS,
    )  # fmt: skip
    return _venous(keys[6], (mothers, daughters), chi_blood, MimicKind.MEDULLARY_VEIN)


def _pial(key: jax.Array, head: HeadMaps, chi_blood: jax.Array, tier: Tier) -> tuple[Vessels, Vessels]:
    """Branches and trunks of the veins in the sulci and over the brain's surface.

    A trunk is rooted where the surface meets the dura, mostly near a sinus, and runs into the sulci.
    """
    keys = jax.random.split(key, 10)
    nuclei = in_regions(head.region, Region.THALAMUS, Region.BASAL_GANGLIA, Region.BRAINSTEM)
    brain = (head.region != Region.OUTSIDE) & (head.region != Region.VENTRICLE) & ~nuclei
    fluid = head.channels[..., Channel.CSF] * brain
    # The CSF of a narrow sulcus is lost on the planning grid: the two banks of cortex show where it is.
    fold = fluid + 0.5 * head.channels[..., Channel.GRAY_MATTER] * brain
    beyond = (head.region == Region.OUTSIDE).astype(jnp.float32)
    prior = jnp.clip((head.channels[..., Channel.VESSEL_PRIOR] - 0.3) / 0.4, 0.0, 1.0)
    sinus = blur(prior * head.channels[..., Extra.VENOUS], 8.0)
    surface = fluid * blur(beyond, 1.0) * blur(head.channels[..., Channel.GRAY_MATTER], 1.0)
    weight = surface * (0.3 + sinus / jnp.maximum(jnp.max(sinus), 1e-6))
    start = draw_voxels(keys[0], weight, head.grid, PIAL_ROOTS)
    # Sulci draw the walks in, not the surface that lies against the dura. Off the axis of a sulcus a walk is
    # bent back; what it has of a heading across is lost at once.
    inner = blur(fold * jnp.clip(1.0 - 4.0 * blur(beyond, 1.5), 0.0, 1.0), 1.0)
    sheet = _sheet(inner)
    terrain = Terrain(gradient(inner) * 0.8, 0.5 * sheet, blur(fold, 1.0) * 1.7, head.grid)
    inward = interpolate(-gradient(blur(beyond, 3.0)), head.grid, start)
    heading = unit(inward) + 0.5 * jax.random.normal(keys[5], start.shape)
    normal = interpolate(sheet, head.grid, start)[:, SYMMETRIC]
    heading = heading - jnp.einsum("wab,wb->wa", normal, heading)
    radius, length = _draw_sizes(keys[1:3], PIAL_RADII_MM, PIAL_ROOTS, PIAL_STEPS, tier)
    share = tier.vein_density * jax.random.uniform(keys[3], minval=0.5)
    used = _used(PIAL_ROOTS, share, weight)
    trunks = long_enough(
        grow(keys[4], start, heading, radius, length, used, terrain, wander=0.012, steps=PIAL_STEPS)
    )
    branches = branch(
        keys[6], trunks, terrain, count=PIAL_BRANCHES, angle_rad=(0.5, 1.2),
        wander=0.012, steps=PIAL_BRANCH_STEPS,
    )  # fmt: skip
    twigs = branch(
        keys[7], branches, terrain, count=PIAL_TWIGS, angle_rad=(0.5, 1.2),
        wander=0.012, steps=PIAL_TWIG_STEPS,
    )  # fmt: skip
    return (
        _venous(keys[8], (branches, twigs), chi_blood, MimicKind.PIAL_VEIN),
        _venous(keys[9], (trunks,), chi_blood, MimicKind.PIAL_VEIN),
    )


def _crossing(key: jax.Array, head: HeadMaps, chi_blood: jax.Array, tier: Tier) -> Vessels:
    """Straight veins from the surface through the brain, at every angle to the slices.

    Superficial medullary and transcerebral veins; `tier.end_on` of them run within `END_ON_RAD` of the
    slices' normal, the others have directions spread evenly over the sphere.
    """
    keys = jax.random.split(key, 8)
    solid = head.channels[..., Channel.GRAY_MATTER] + head.channels[..., Channel.WHITE_MATTER]
    solid = solid * (head.region < Region.VENTRICLE)
    filled = blur(solid, 1.0)
    sulcal = blur(in_regions(head.region, Region.SULCAL_CSF) * head.channels[..., Channel.CSF], 1.0)
    cerebrum = in_regions(head.region, Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)
    weight = sulcal * filled * cerebrum
    start = draw_voxels(keys[0], weight, head.grid, CROSSING_ROOTS)
    # A direction is uniform on the sphere when its cosine to the normal is uniform.
    z = jax.random.uniform(keys[1], (CROSSING_ROOTS,), minval=-1.0)
    steep = jax.random.uniform(keys[2], (CROSSING_ROOTS,)) < tier.end_on
    limit = np.cos(END_ON_RAD)
    z = jnp.where(steep, jnp.sign(z) * (limit + (1 - limit) * jnp.abs(z)), z)
    turn = jax.random.uniform(keys[3], (CROSSING_ROOTS,), maxval=2 * np.pi)
    flat = jnp.sqrt(1 - z**2)
    heading = jnp.stack([flat * jnp.cos(turn), flat * jnp.sin(turn), z], axis=1)
    depth = gradient(blur(solid, 2.0))
    # whichever of the two ways along its line leads into the tissue
    inward = jnp.sum(interpolate(depth, head.grid, start) * heading, axis=1, keepdims=True)
    heading = jnp.where(inward < 0, -heading, heading)
    shape = head.grid.shape
    room = jnp.minimum(filled * 1.4, 1.0)
    terrain = Terrain(jnp.zeros((*shape, 3)), jnp.zeros((*shape, 6)), room, head.grid)
    radius, length = _draw_sizes(keys[4:6], CROSSING_RADII_MM, CROSSING_ROOTS, CROSSING_STEPS, tier)
    used = _used(CROSSING_ROOTS, tier.crossing_veins, weight)
    walks = long_enough(
        grow(keys[6], start, heading, radius, length, used, terrain, wander=0.003, steps=CROSSING_STEPS)
    )
    return _venous(keys[7], (walks,), chi_blood, MimicKind.MEDULLARY_VEIN)


def _venous(key: jax.Array, generations: tuple[Walks, ...], chi_blood: jax.Array, kind: int) -> Vessels:
    """Veins of several generations: oxygenation differs a little from tree to tree."""
    parts = []
    for walks, k in zip(generations, jax.random.split(key, len(generations)), strict=True):
        count = walks.alive.shape[0]
        chi = chi_blood * jax.random.uniform(k, (count,), minval=0.8, maxval=1.2)
        parts.append(_as_vessels(walks, chi, jnp.full((count,), 0.95), kind, towards_root=True))
    return join(*parts)


_Course = tuple[tuple[float, float, float], ...]

# Courses in MNI mm, right side, with the radius in mm at the end nearer to the heart. Veins run as listed,
# toward the great vein; arteries as listed, away from the heart. After standard atlases of neuroanatomy.
_DEEP_VEINS: tuple[tuple[_Course, float], ...] = (
    (((2.5, 2, 9), (2.5, -10, 14), (2.5, -25, 13), (2, -36, 9), (0.5, -43, 10)), 0.9),  # internal cerebral
    (((24, -30, 18), (19, -16, 22), (12, -2, 18), (4, 2, 11), (2.5, 2, 9)), 0.6),  # thalamostriate
    (((9, 27, 12), (4, 16, 11), (2.5, 2, 9)), 0.5),  # anterior septal
    (((10, -6, -14), (17, -20, -10), (14, -34, 0), (3, -41, 7), (0.5, -43, 10)), 0.8),  # basal (Rosenthal)
    (((0.5, -43, 10), (0.5, -50, 14)), 1.1),  # great vein of Galen
)
_ARTERIES: tuple[tuple[_Course, float], ...] = (
    (((0, -20, -44), (0.5, -17, -32), (0, -14, -20)), 1.3),  # basilar
    (((2, -14, -18), (12, -18, -15), (20, -28, -10), (20, -44, -4), (14, -62, 0)), 0.9),  # posterior cerebral
    (((10, 2, -16), (22, 2, -15), (34, 4, -14), (40, 2, -6), (41, -10, 4), (42, -24, 12)), 1.1),  # middle
    (((8, 4, -14), (2.5, 16, -12), (2.5, 32, -4), (2.5, 38, 10), (2.5, 28, 24)), 0.9),  # anterior cerebral
    (((40, 2, -6), (44, 14, 0), (47, 24, 8)), 0.7),  # anterior branch of the middle cerebral
    (((40, 0, -6), (46, -14, -4), (50, -30, 0)), 0.7),  # temporal branch
)
_LONGEST_COURSE = 220  # steps


def _course_points(courses: tuple[tuple[_Course, float], ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sides' points (C, S, 3) in MNI mm, `STEP_MM` apart; which exist (C, S); radius at the root (C,).

    A course shorter than S steps ends early; the rest repeats its end.
    """
    lines, there, radii = [], [], []
    for course, radius in courses:
        for side in (1.0, -1.0):
            corners = np.asarray(course) * (side, 1.0, 1.0)
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
            at = np.minimum(np.arange(_LONGEST_COURSE) * STEP_MM, length[-1])
            lines.append(np.stack([np.interp(at, length, corners[:, a]) for a in range(3)], axis=1))
            there.append(np.arange(_LONGEST_COURSE) * STEP_MM <= length[-1])
            radii.append(radius)
    return np.asarray(lines, np.float32), np.asarray(there), np.asarray(radii, np.float32)


def _along_courses(
    key: jax.Array, courses: tuple[tuple[_Course, float], ...], head: HeadMaps, *, narrows: bool
) -> Walks:
    """Known courses, bent a little but for their ends, where they meet.

    `narrows`: the radius falls along them, else it grows.
    """
    lines, there, radii = _course_points(courses)
    k_bend, k_radius = jax.random.split(key)
    count = len(lines)
    steps = there.sum(axis=1, keepdims=True) - 1
    # Sines that are 0 at both ends bend each course between them; short courses bend less.
    t = np.minimum(np.arange(_LONGEST_COURSE) / steps, 1.0)  # (C, S) of the course's own length
    waves = np.stack([np.sin(np.pi * n * t) for n in (1, 2, 3, 5)]) * np.minimum(steps * STEP_MM / 40.0, 1.0)
    bend = jax.random.normal(k_bend, (count, 3, 4)) * jnp.array([1.2, 0.8, 0.6, 0.3])
    bent = jnp.asarray(lines) + jnp.einsum("cak,kct->cta", bend, jnp.asarray(waves, jnp.float32))
    points = from_pack(head.pose, of_mni(head.anatomy, bent.reshape(-1, 3))).reshape(bent.shape)
    ahead = unit(jnp.diff(points, axis=1, append=2 * points[:, -1:] - points[:, -2:-1]))
    along = jnp.cumsum(jnp.asarray(there), axis=1) / jnp.sum(jnp.asarray(there), axis=1, keepdims=True)
    shrink = 1.0 - 0.4 * (along if narrows else 1.0 - along)
    size = jnp.asarray(radii) * jnp.exp(0.15 * jax.random.normal(k_radius, (count,)))
    return Walks(points, ahead, jnp.minimum(size[:, None] * shrink, MAX_RADIUS_MM), jnp.asarray(there))


def _uniform(walks: Walks, chi_ppm: jax.Array | float, signal: jax.Array | float, kind: int) -> Vessels:
    """Vessels along whose courses blood runs as listed, all with the same blood."""
    count = walks.alive.shape[0]
    chi, bright = jnp.full((count,), chi_ppm), jnp.full((count,), signal)
    return _as_vessels(walks, chi, bright, kind, towards_root=False)


def draw_vessels(
    key: jax.Array, head: HeadMaps, chi_blood: jax.Array, artery_signal: jax.Array, tier: Tier
) -> tuple[Vessels, Vessels]:
    """Thin veins (radius up to `MAX_THIN_MM` times the tier's factor) and all other vessels.

    Every vein that is drawn reaches `SHORTEST_MM` or farther from its root, and is rooted in a larger one, at
    a ventricle's wall or on the brain's surface.

    chi_blood (): ppm of the subject's venous blood; artery_signal (): of flowing arterial blood, over tissue.
    """
    k_medullary, k_pial, k_crossing, k_deep, k_artery = jax.random.split(key, 5)
    medullary = _medullary(k_medullary, head, chi_blood, tier)
    twigs, trunks = _pial(k_pial, head, chi_blood, tier)
    crossing = _crossing(k_crossing, head, chi_blood, tier)
    veins = _along_courses(k_deep, _DEEP_VEINS, head, narrows=False)
    arteries = _along_courses(k_artery, _ARTERIES, head, narrows=True)
    deep = _uniform(veins, chi_blood, 0.95, MimicKind.DEEP_VEIN)
    arterial = _uniform(arteries, 0.0, artery_signal, MimicKind.ARTERY)
    return join(medullary, crossing, twigs), join(trunks, deep, arterial)
