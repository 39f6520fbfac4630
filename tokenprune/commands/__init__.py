"""Commands of `tokenprune`, one file each: what they take; what they do is in `tokenprune.eval`."""
