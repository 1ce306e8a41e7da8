"""Loss functions; import them from the modules.

All compute in float32, also under autocast and for half-precision input (`precision.full_precision`), return a scalar
mean unless stated otherwise, and have finite gradients for masked and degenerate input.
"""
