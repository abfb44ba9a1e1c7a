"""Archives of Part 10 files that were there before: registered where they lie, or taken into the store."""
