"""Second moments of MLP inputs: accumulation, factorisation, null space, store."""
