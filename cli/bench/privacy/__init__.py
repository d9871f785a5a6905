"""`fedmq bench privacy`: what differential privacy costs, on real images."""
