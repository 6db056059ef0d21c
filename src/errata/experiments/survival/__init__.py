"""Do edits survive fine-tuning? Edit, tune, ask again (arXiv 2511.05852), as a matrix.

`settings` says what the matrix is and imports no torch; `measure` asks one model, `outcomes`
tells what became of the edits, `run` goes through the matrix, `figures`, `report` and `plots`
show it.
"""
