"""`python -m cmb_jax.cli`, the same as `cmb-jax`."""

from cmb_jax.cli import main

main()
