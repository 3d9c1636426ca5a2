"""The one room that imports LiteRT."""
