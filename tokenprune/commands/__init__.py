"""Commands of `tokenprune`, one file each: their arguments. Their work is done in `tokenprune.eval`."""
