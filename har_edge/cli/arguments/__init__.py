"""Options that several commands share, and the functions that read their values."""
