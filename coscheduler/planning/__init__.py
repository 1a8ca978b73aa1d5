"""Plans of a machine from the sizes of models alone: no device, no weights, no tensor library."""
