"""Show a deployment to people, and find its faults."""
