"""WhisperX behind the Engine protocol: speech segments, text, word times, speakers, files."""
