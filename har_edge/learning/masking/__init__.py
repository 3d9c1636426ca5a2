"""Sums of updates that hide each update from the server: keys, masks, shares, and the rounds that use them."""
