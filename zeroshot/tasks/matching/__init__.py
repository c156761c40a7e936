"""Images and texts to scores of how well they fit."""
