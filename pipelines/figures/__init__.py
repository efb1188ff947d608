"""The paper's figures, each from finished runs: PNG, SVG, and the numbers as CSV."""
