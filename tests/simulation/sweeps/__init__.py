"""Sweeps: a few stories, each told again for every place at which one thing can go wrong; all must end alike."""
