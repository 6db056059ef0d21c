"""Errors, settings, text, files, locks, processes: no torch, and nothing of errata."""
