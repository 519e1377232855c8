"""Evaluate a trained detector: python eval.py --config small --workdir runs/small (as `cmb-jax eval`)."""

import sys

from cmb_jax.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
