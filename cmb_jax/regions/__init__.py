"""The region network whole: grid, samples, network, training, prediction of a region map."""
