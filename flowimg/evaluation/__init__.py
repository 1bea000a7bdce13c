"""Scores of samples against their data."""
