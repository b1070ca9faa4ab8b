"""Settings of all unit tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Neither a slow example nor a slow source of examples is a fault: a loaded machine has both.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
