"""Data: corpora, tokenizers, prepared datasets, and samples in a fixed global order."""
