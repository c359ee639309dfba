"""Choosing what a site becomes: options, their latency, and the plan made of them."""
