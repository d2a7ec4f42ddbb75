"""Turns a checkpoint into a bundle: two ONNX graphs, verified on held-out images before they are published."""
