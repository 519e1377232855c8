"""What a compiled training step costs, and what that means on a given device: operations, bytes, messages."""
