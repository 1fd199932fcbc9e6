"""What methods are made of: sums, selections, draws and votes on chunks, and their kernels."""
