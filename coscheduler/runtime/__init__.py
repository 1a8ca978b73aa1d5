"""The daemon's inside: the loop that owns the Scheduler, children, meter, files, database."""
