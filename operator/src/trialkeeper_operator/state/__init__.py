"""What is known: the cache of objects and the codec of the snapshot."""
