"""Files in and out: NIfTI, tables, JSON, weights; written whole or not at all."""
