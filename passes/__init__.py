"""The passes, one a file. Each module holds one frozen dataclass that satisfies `PrunePass`."""
