"""Triton kernels for GPUs; each has a portable counterpart that judges it. Imported only where they run."""
