"""Small devices emulated on one Linux machine: a network namespace, a slow link and limits each (docs/testbed.md)."""
