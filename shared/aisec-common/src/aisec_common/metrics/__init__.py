"""Metrics that torchmetrics, scikit-learn and scikit-survival do not already give."""
