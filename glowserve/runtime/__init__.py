"""Runs a bundle in this process: reads it, opens its graphs in ONNX Runtime, and answers requests."""
