"""Measurements, each a script with a printed table; `make bench` runs those that need no path."""
