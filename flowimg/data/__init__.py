"""Where x_1 comes from: toys, sources of images, the store, the order, the batches."""
