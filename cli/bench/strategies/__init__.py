"""`fedmq bench strategies`: what a way of aggregating costs and gains, on real images and virtual time."""
