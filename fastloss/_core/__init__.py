"""What every family of functions uses: checks, buffers, reductions, gradients, threads."""
