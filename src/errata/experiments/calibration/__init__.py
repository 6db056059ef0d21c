"""Calibration: finding the settings of a method for a model (see `run`)."""
