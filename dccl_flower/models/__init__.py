"""Model zoo, vertical split and the additive served model."""
