"""Doubles of what no test machine has; `hailo_platform` stands for the vendor's package."""
