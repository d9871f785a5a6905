"""`fedmq simulate`: the minds of a federation on virtual time, as many workers as memory holds."""
