"""Small devices emulated on one Linux machine: network namespace, link, limits (docs/how-to/emulated-devices.md)."""
