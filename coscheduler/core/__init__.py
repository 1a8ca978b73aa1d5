"""The pure core: events in, commands out. Integers only (bytes, ms); no clocks, no I/O."""
