"""Training: images and where they come from, the LightningModule, recipes."""
