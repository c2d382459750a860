"""What training costs on one GPU, or several: needs torch and nothing else of what the rest of the system needs.

python -m benchmarks.gpu                        # from the repository's root, in any image that has PyTorch
torchrun --nproc-per-node 8 -m benchmarks.gpu   # data parallel over the GPUs of this machine
"""
