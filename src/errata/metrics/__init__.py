"""What editing and tuning cost a model elsewhere: perplexity on text, accuracy at tasks."""
