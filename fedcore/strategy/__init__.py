"""How a buffer of updates becomes a version: staleness, rules, server optimizers."""
