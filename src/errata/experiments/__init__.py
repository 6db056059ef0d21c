"""Runs on disk: edit, evaluate, trace, tune, sweeps, survival, recipes and their costs."""
