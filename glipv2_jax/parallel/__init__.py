"""Device mesh and path-regex sharding rules."""
