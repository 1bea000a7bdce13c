"""What a run looks like: grids of pictures, plots of points."""
