"""Matching rules, FROC, intervals."""
