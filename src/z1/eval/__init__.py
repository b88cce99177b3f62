"""Evaluation on held-out scenes, its statistics, and the report of a run folder."""
