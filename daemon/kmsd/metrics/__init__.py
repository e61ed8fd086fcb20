"""What the daemon counts of itself, in Prometheus's text."""
