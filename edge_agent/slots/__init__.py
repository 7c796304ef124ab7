"""How a new version of a model comes into service: download, trial, shadow, canary, live; and back."""
