"""MFdiff: low-dose PET restoration guided by MR, as a pure PyTorch library.

Reading order: `physics` (phantom to image pair), `data` (slices on disk), `networks` and
`diffusion` (the method), `model` (both together), `training`, `evaluation`, `bundle` (a trained
model on disk), `restore`. PAPER.md maps every equation to its function and test.
"""

__version__ = "0.1.0"
