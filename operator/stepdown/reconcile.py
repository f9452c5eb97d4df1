"""One pass, each step by its name."""
