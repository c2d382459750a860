"""Stock architectures of Hugging Face transformers that compute what a model of ours computes: a small file each."""
