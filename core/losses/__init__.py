"""Loss functions, grouped by what they compare; import them from the modules.

All compute in float32, also inside an autocast region and on half-precision input (`precision.full_precision`),
return a scalar mean unless their docstring says otherwise, and give finite gradients on masked or degenerate input.
"""
