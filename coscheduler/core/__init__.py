"""The pure core: events in, commands out. Integers only (bytes, milliseconds); no clocks, no I/O."""
