"""Second moments of MLP inputs: accumulate, factor, cut the null space, store."""
