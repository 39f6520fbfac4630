"""`tokenprune tune`: the cheapest setting whose answers differ from the full model's in few cases, with a guarantee."""
