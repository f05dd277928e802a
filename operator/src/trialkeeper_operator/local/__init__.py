"""One machine as a cluster: pods are processes, the API server is a dict with a journal."""
