"""Models in and out: checkpoints as plain weights, and the formats other systems read and write."""
