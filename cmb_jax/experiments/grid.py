"""What an ablation compares: variants of one configuration, each trained from several seeds."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from cmb_jax.config import Config
from cmb_jax.config_load import made_by_file

_NAME = re.compile(r"[a-z0-9_.]+(-[a-z0-9_.]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One configuration of the comparison; its seed is set by the grid."""

    name: str  # of its runs' folders: NAME-seed0, NAME-seed1, ...
    config: Config

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"variant {self.name!r}: a name has small letters, digits and _ . - only")

    def but(self, suffix: str, **loss: Any) -> Variant:
        """This variant with other settings of the loss, named NAME-SUFFIX."""
        config = dataclasses.replace(self.config, loss=dataclasses.replace(self.config.loss, **loss))
        return Variant(name=f"{self.name}-{suffix}", config=config)

    def with_seed(self, seed: int) -> Config:
        """The configuration of one run."""
        return dataclasses.replace(self.config, train=dataclasses.replace(self.config.train, seed=seed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Variants x seeds, and what they are compared with."""

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = "rpn"
    """Name of the variant that the others are compared with."""
    matched_sensitivity: float | None = None
    """Sensitivity at which false positives are compared; None: the reference's at its operating point."""

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"two variants of one name among {names}")
        if self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is none of the variants {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be some, and differ")
        if self.matched_sensitivity is not None and not 0 < self.matched_sensitivity <= 1:
            raise ValueError("matched_sensitivity must be above 0 and at most 1")
        if len({variant.config.data.spacing_mm for variant in self.variants}) > 1:
            raise ValueError("all variants must have one working grid, data.spacing_mm")


def four_configurations(base: Config) -> tuple[Variant, ...]:
    """rpn, rpn_ffm, rpn_hspl and rpn_ffm_hspl: without and with feature fusion and prototypes."""
    return tuple(
        Variant(
            name="rpn" + "_ffm" * fusion + "_hspl" * prototypes,
            config=dataclasses.replace(
                base,
                model=dataclasses.replace(base.model, use_fusion=fusion, use_prototypes=prototypes),
            ),
        )
        for prototypes in (False, True)
        for fusion in (False, True)
    )


def grid_from_file(path: Path) -> Grid:
    """What `get_grid()` of a Python file returns.

    Raises:
      UserError: no such file, or it has no `get_grid` that returns a Grid.
    """
    return made_by_file(path, "get_grid", Grid)
