"""A torch model's weights as files laid out for loading, and as one allocation for each layer."""
