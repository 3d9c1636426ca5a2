"""har_edge as services of systemd: unit files with as few rights as each needs, and how they are installed."""
