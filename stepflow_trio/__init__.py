"""The Stepflow protocol on trio."""
