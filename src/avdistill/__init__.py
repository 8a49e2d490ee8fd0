"""Cross-modal knowledge distillation on videos as people upload them."""
