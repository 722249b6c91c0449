"""The VQ autoencoder that turns an image into codes, and its training."""
