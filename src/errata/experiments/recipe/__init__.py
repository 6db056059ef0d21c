"""A whole experiment as one YAML file: schema, stages, resume."""
