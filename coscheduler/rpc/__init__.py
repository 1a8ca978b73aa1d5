"""The gRPC front: turns calls into `DaemonApi` calls and plain data into messages, nothing more."""
