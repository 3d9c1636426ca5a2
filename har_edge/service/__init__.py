"""Run har_edge as services of systemd: unit files with the least rights that each needs, and their installation."""
