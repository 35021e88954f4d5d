"""Accuracy of an architecture on the proxy task: the role, and one module for each way to get it."""
