"""Do edits survive fine-tuning? A matrix of edits and tunings, scored (arXiv 2511.05852).

`settings` defines the matrix and imports no torch; `questions` reads cases, rows and texts;
`measure` scores one model; `run` runs the matrix; `outcomes` classifies the edits; `summary`,
`report` and `figures` present the results.
"""
