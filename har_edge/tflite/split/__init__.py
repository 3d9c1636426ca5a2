"""Split operators inside: several devices compute shares of the same operators for one window."""
