"""The work of each benchmark, and the peers that do it."""
