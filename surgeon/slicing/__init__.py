"""Physical slicing: channels that are off are cut out, and no logit changes."""

from __future__ import annotations
