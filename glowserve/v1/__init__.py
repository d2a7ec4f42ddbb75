"""Generated from protos/glowserve/v1 by `make protos`."""
