"""Brokers: Mosquitto started where it is installed, and an embedded one for machines without it."""
