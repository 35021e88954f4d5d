"""Training: datasets and their sources, the LightningModule, recipes of full trainings."""
