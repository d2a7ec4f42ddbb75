"""Makes a bundle of a checkpoint: two ONNX graphs, proved on held-out images before they appear."""
