"""SAM-Audio: pulls the sound that a text describes out of a recording.

An independent implementation that reads the official files (`config.json`, `checkpoint.pt`) and has
no part of the model that text and span prompting do not need.
"""
