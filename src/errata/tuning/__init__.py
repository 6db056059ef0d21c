"""Fine-tuning an edited model as it stands: where, on what, by which method.

`settings` says how and imports no torch; `rows` and `templates` make text into tokens, `places`
names the matrices that move, `train` moves them, `guard` keeps edits from being moved.
"""
