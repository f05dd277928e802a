"""Uploading: the trainer hands a save over to a process of its own, and goes on training."""
