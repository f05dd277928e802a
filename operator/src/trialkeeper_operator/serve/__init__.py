"""In a cluster: the watch, the leader, the report service, health and metrics."""
