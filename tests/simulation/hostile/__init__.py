"""Hostile input: garbage in whatever others can write, and a healthy experiment beside it that must not notice."""
