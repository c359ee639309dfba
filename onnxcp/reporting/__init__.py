"""Showing what was done: tables in the terminal and a page to keep."""
