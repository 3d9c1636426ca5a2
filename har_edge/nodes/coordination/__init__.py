"""The coordinator: watches nodes, plans, and moves slices while data flows."""
