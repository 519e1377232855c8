"""Array operations on (B, Z, Y, X, C) tensors: convolution, norm, resampling."""
