"""Generated from protos/glowserve/oip by `make protos`. Never in one process with tritonclient: same message names."""
