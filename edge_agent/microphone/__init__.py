"""Microphones, each recorded by a process of its own."""
