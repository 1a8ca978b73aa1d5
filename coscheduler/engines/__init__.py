"""Engine processes: what runs the models. Implementations are imported only inside their own child."""
