"""Makes decisions true through two ports, Cluster and Source. Knows no Kubernetes client and no process."""
