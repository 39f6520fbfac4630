"""What works with pruning, cell by cell: `tools/docs_tables.py` makes docs/compatibility.md of these tests."""
