"""What the released code of policies keeps, as data, and that the library keeps the same."""
