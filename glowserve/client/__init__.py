"""The clients: `Client` for threads and `AsyncClient` for event loops, over transports."""
