"""DPAR: Dynamic Patchification for Efficient Autoregressive Visual Generation."""

__version__ = "0.1.0"
