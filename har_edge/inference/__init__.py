"""Run models with LiteRT; no other room imports it."""
