"""Simulated subjects: susceptibility, field, signal, acquisition, lesions, mimics."""
