"""The training loop and what it is made of: building a rank's part of the model, optimizer, schedule, evaluation."""
