"""Readers of public data sets with microbleeds, and of own folders, as they lie on disk."""
