"""Pure training kernels; nothing here knows of Flower."""
