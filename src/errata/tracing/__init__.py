"""Where a model keeps a fact: causal tracing and the logit lens."""
