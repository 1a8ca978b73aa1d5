"""The demonstration: a recording of a meeting, and tiny models that every real loader accepts."""
