"""Microbleeds and mimics put into a real scan's magnitude and phase, with their truth."""
