"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure, and a failure comes back on the next run.
settings.register_profile("surgeon", deadline=None, derandomize=True, database=None)
settings.load_profile("surgeon")
