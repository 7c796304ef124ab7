"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.helpers import rounds

pytest_plugins = ["tests.postgres"]

# The machines that run the suite are shared: how long an example takes says nothing about the code.
settings.register_profile(
    "shared", deadline=None, max_examples=rounds(100, 2000), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")

# A developer's own settings must not reach the tests.
for name in [name for name in os.environ if name.startswith("PRIMESPARK_")]:
    del os.environ[name]
