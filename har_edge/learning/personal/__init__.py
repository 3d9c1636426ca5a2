"""Models for one person: windows of the person, the adaptation to them, and the model that comes of it."""
