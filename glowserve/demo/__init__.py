"""The demo: trains a model of handwritten digits, exports it, serves it, and calls the service."""
