"""Pure search: which parameters to try next."""
