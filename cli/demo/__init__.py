"""The demo: real processes, real images, and the comparison that the project started from."""
