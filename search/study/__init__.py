"""A study: how a trial is evaluated (evaluate.py, read it first), who asks for trials and where they are kept."""
