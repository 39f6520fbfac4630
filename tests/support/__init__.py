"""What tests share: models, batches, oracles, tables."""
