"""Engine processes: what runs the models, each implementation imported only in its own child."""
