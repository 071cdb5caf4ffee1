"""Random hostile cases against exact answers."""
