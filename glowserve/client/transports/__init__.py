"""The transports of the clients: gRPC for threads, gRPC for event loops, and a bundle in this process."""
