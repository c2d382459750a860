"""SAMformer (Ilbert et al. 2024): attention over channels, and why sharpness is its trouble."""
