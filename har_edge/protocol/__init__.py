"""What the messages of a deployment mean: topics, wire format, statuses, plans and results."""
