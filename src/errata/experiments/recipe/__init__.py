"""Recipes: a complete experiment as one YAML file; its schema, its stages, and how it resumes."""
