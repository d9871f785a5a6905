"""What the broker keeps on disk: the journal, payloads, versions."""
