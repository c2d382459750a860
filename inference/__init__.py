"""A trained model at work on one device: text from prompts, and losses on prepared data."""
