"""The region network: grid, samples, network, prediction of a region map."""
