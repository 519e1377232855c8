"""Peers that the package is timed against; the package itself never imports this folder."""
