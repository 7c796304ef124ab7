"""The Dagster code location `primespark`: what exists, in which order it is made, and when.

Assets are thin over `primespark`; they return no values, hand-over is by tables and blobs.
"""
