"""`tokenprune bench`: policies on the tasks of the embedded models."""
