"""Tokens that become one and the same with depth, at initialisation and in training (Noci et al. 2022)."""
