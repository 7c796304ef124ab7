"""Engines, images, and what stands before and behind a model; the same code trains and serves.

Importing this package loads nothing: the first result of a device waits for every import.
"""
