"""Networks, views, matchers, the synthesis loop, soft labels and student training."""
