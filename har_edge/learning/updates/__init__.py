"""The weights and changes that workers and the server send each other: flat vectors, compressed, and in parts."""
