"""The meaning of the messages of a deployment: topics, wire format, statuses, plans and results."""
