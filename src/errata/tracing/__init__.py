"""Locating facts: causal tracing and the logit lens."""
