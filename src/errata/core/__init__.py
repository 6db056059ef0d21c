"""Errors, settings, text, files, locks, processes: imports neither torch nor other rooms."""
