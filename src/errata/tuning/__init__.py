"""Fine-tuning of an edited model.

`settings` holds the settings and imports no torch; `encode` tokenises rows, `modules` selects the
trained parameters, `train` and `trainer` train them, `guards` protects edits.
"""
