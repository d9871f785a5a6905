"""`fedmq privacy`: what a promise would cost, and what was promised."""
