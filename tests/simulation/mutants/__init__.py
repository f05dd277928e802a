"""Planted bugs: each is a mistake that somebody could make, and each has a sweep that does not end as it should."""
