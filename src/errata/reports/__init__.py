"""How results look: tables and figures, for runs and the command line alike."""
