"""The whole way in one go: trains on handwritten digits, exports, serves, and asks the service."""
