"""The model files that a config needs: which, where, from whom, and how they come there."""
