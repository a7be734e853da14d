"""Diffusion models for images and videos, rebuilt paper by paper."""

__version__ = "0.1.0"
