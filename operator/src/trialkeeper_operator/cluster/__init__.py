"""The other side of the ports: who answers `get`, `create`, `put_status` and `delete`."""
