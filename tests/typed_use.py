"""How a user's program uses the package, for mypy; `make lint` checks it."""

from pathlib import Path

import nibabel as nib
import numpy as np

import cmb_jax


def use() -> list[str]:
    """Every form of an image, and what a prediction offers."""
    detector = cmb_jax.load_detector("small")
    predictions = [
        cmb_jax.predict("swi.nii.gz", Path("phase.nii.gz"), weights="small"),
        detector.predict(nib.load("swi.nii.gz"), nib.load("phase.nii.gz"), threshold=0.5),
        detector.predict((np.zeros((9, 9, 9)), np.eye(4))),
        detector.predict(cmb_jax.read_volume("swi.nii.gz")),
    ]
    for prediction in predictions:
        prediction.save("result", overwrite=True)
        nib.save(prediction.labels(), prediction.show().with_name("labels.nii.gz"))
    return [f"{row.region} {row.score:.2f}" for one in predictions for row in one.kept]
