"""Train a detector: python train.py --config configs/small.py --workdir runs/small [--train.steps 500 ...].

Run it again to resume. `--help` after a configuration lists every setting that can be overridden.
"""

from cmb_jax.commands.train import main

if __name__ == "__main__":
    main()
