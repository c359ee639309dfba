"""CharNet: a trained character classifier with the data to measure it on (see README.md)."""
