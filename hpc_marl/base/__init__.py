"""What everything stands on: names, sockets, RPC, security, shared memory, checkpoints, telemetry. No torch."""
