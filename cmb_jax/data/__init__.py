"""Preparation to the working grid, patch sampling, augmentation, Grain pipeline."""
