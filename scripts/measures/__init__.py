"""What `scripts/measure NAME` runs: one module for each NAME."""
