"""Train a detector: python train.py --config small --workdir runs/small, the same as `cmb-jax train`."""

import sys

from cmb_jax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
