"""Links: ways for frames to travel between a runtime and a worker."""
