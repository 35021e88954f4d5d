"""One module for each command: from its configuration to what the user sees. Only these import Hydra."""
