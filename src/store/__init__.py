"""Artifacts on disk: what they are, where they lie, how they are written and checked; checkpoints, provenance, cost."""
