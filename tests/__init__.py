"""Tests: against a restated reference, a closed form, a property or a second run."""
