"""Images, stored codes, and batches of them."""
