"""How a client's requests reach what answers them: over gRPC, or in this process."""
