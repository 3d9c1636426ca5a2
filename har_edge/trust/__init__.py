"""Trust: the coordinator's key signs plans, and nodes follow no other ones (docs/how-to/signed-plans.md)."""
