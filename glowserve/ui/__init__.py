"""Pages in a browser to look at a service's models: scores, samples, and walks between pictures."""
