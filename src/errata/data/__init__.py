"""Facts and text in: requests, cases, datasets, corpora, instructions. No torch."""
