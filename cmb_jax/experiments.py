"""Gone: the study of variants is the command `cmb-jax ablate`; what it was made of lies in `research/`."""

raise ImportError("it is now the command: cmb-jax ablate --config FILE --workdir DIR", name=__name__)
