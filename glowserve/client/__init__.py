"""The client: `Client` for threads, `AsyncClient` for event loops, over transports."""
