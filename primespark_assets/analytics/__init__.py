"""Figures derived from samples."""
