"""Checkpoints: the state of training as global tensors, folders that are whole or refused, saving beside training."""
