"""Every quirk of a model or tokenizer: families, loading, tokens, hooks, partial runs."""
