"""Choose the method for images at hand, and keep the choice as a recipe."""
