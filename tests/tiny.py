"""A detector small enough for tests, shared by those that need no other."""

from cmb_jax.config import ModelConfig

TINY_MODEL = ModelConfig(
    widths=(4, 6, 8),
    encoder_convs=(0, 1, 1),
    decoder_convs=(0, 1),
    fusion_width=4,
    head_width=4,
    embedding_dim=4,
)
