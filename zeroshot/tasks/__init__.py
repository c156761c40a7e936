"""What is done with images: one folder for each kind of task."""
