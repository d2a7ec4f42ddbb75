"""Makes answers of a bundle: a gRPC service that scores images and samples from Glow."""
