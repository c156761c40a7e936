"""What images, folders and texts look like to a model, in words."""
