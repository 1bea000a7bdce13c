"""The figures of a run: grids of pictures, plots of points, curves, and the pages that show them."""
