"""Scores of weights made probabilities, and their operating point chosen, on labeled scans."""
