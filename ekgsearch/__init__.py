"""Search, distil and fine-tune smaller convolutional networks."""

__version__ = "0.1.0"
