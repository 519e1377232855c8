"""cmb-jax weights: what weights are and what they were trained on."""

from __future__ import annotations

from cmb_jax.config_io import config_to_json
from cmb_jax.inference.bundle import load_bundle


def show(weights: str) -> None:
    """Print the record of bundled or own weights.

    Raises:
      UserError: no such weights.
    """
    bundle = load_bundle(weights)
    print(f"weights: {bundle.path.name}\nsha256:  {bundle.sha256}")
    print(f"operating point: score >= {bundle.config.inference.score_threshold:.3f}")
    record = bundle.path.with_suffix(".json")
    if record.exists():
        print(f"training record:\n{record.read_text().strip()}")
    print(f"configuration:\n{config_to_json(bundle.config)}")
