"""Tables and figures of results, for runs and the command line."""
