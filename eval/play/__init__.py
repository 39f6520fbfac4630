"""`tokenprune play`: a page on which a model answers a question about a picture, full and pruned."""
