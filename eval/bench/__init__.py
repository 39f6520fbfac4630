"""`tokenprune bench`: policies compared on tasks of the embedded models."""
