"""The network: Swin, FPN, text encoders, fusion tower and heads, one concern per file."""
