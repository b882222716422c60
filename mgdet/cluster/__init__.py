"""Ray: the only part of mgdet that imports it."""
