"""Faces for other libraries, a file each, which nothing else imports."""
