"""Accuracy of architectures on the proxy task: the role, one module per evaluator, and statistics of their accuracies."""
