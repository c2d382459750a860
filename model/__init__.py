"""The decoder, written from named parallel layers; it never asks for a rank."""
