"""Flax NNX modules: U-Net, fusion, region proposals, prototypes, detector, region net."""
