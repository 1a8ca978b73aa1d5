"""Training of the demonstration's models, from data that these scripts make themselves."""
