"""One training step: the loop, its gradient, dropout, optimiser, and what a step costs."""
