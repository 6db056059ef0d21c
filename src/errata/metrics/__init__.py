"""What an edit changed and what it broke: metrics on cases, perplexity on text, tasks."""
