"""The gRPC front: calls come in, are checked and counted, and leave as messages or status codes."""
