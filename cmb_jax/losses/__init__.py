"""Pure loss functions: detection losses and prototype losses."""
