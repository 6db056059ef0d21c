"""Input data: edit requests, cases, datasets, corpora, instruction rows. No torch."""
