"""Optimizers that need to know which tensor of the model each number belongs to, under ZeRO and tensor parallelism.

ZeRO-1/2 shows an optimizer flat fp32 tensors: of each group of parameters, one behind the other, the part that this
data-parallel rank owns. `fragments` says what those hold; `stable_adamw` and `muon` update them.
"""
