"""Ready-made client apps for torch, Flower and scikit-learn."""
