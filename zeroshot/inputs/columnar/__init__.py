"""What the pages of a Parquet file hold, before they are unpacked."""
