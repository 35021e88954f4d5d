"""LITv2 with HiLo attention: networks, their architectures and their cost (torch and timm only)."""
