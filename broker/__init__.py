"""The broker: owns a model, hands out tasks, folds updates into versions."""
