"""The coordinator: membership, placement, failover and rollout while data flows."""
