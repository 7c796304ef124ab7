"""Blobs on their way from the device to its cloud, each before the fact that names it."""
