"""The `fedmq` command: the only room that knows both sides."""
